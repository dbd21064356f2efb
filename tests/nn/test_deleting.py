from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfm.nn import BertConfig, BertEncoder, deleting
from scfm.nn.deleting import copies_forward

CONFIG = BertConfig(60, 16, 3, 2, 32, 48)


def network(n_layers: int = 3, scale: float = 1.0, seed: int = 0) -> BertEncoder:
    torch.manual_seed(seed)
    encoder = BertEncoder(CONFIG, n_layers).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(scale).add_(0.05 * torch.randn_like(parameter))
    return encoder


def without(cell: torch.Tensor, gaps: list[int]) -> list[torch.Tensor]:
    return [torch.cat([cell[:gap], cell[gap + 1 :]]) for gap in gaps]


def check(encoder: BertEncoder, copies: list[torch.Tensor], cells: list[int], *, first_only: bool) -> None:
    tokens, lengths = torch.cat(copies), [len(copy) for copy in copies]
    with torch.inference_mode():
        found = copies_forward(encoder, tokens, lengths, cells, first_only=first_only)
        wanted = encoder(tokens, lengths, first_only=first_only)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each run of copies shared its first layer."""
    found: list[bool] = []
    plain = deleting._shared

    def spy(*args: object) -> object:
        result = plain(*args)  # type: ignore[arg-type]
        found.append(result is not None)
        return result

    monkeypatch.setattr(deleting, "_shared", spy)
    return found


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("first_only", [True, False])
def test_equals_copies_one_by_one(n_layers: int, first_only: bool, shared: list[bool]) -> None:
    """Copies in any order, of the first and the last token, among others and sequences that are no such copies."""
    cell, other = torch.randperm(50)[:20] + 4, torch.randperm(50)[:20] + 4
    copies = [
        *without(cell, [0, 1, 2, 3]),
        *without(other, [19, 17, 16]),
        other[1:],
        cell[:5],
        cell[:5],
        *[cell[:5]] * 3,
    ]
    check(network(n_layers, 3.0), copies, [0] * 4 + [1] * 3 + [2] + [3] * 2 + [4] * 3, first_only=first_only)
    assert shared == [True, True, False, False, False]


@given(
    seed=st.integers(0, 1000),
    n=st.integers(4, 40),
    scale=st.sampled_from([1.0, 8.0, 30.0]),
    data=st.data(),
)
def test_any_gaps(seed: int, n: int, scale: float, data: st.DataObject) -> None:
    """Also where one key takes all attention, so that without it no sum is left: in float64 it is compared with itself."""
    gaps = data.draw(st.lists(st.integers(0, n - 1), min_size=3, max_size=6))
    encoder, cell = network(2, scale, seed), torch.randperm(50)[:n] + 4
    copies = without(cell, gaps)
    with torch.inference_mode():
        arguments = (torch.cat(copies), [n - 1] * len(gaps))
        found = copies_forward(encoder, *arguments, [0] * len(gaps), first_only=False)
        plain = encoder(*arguments)
        exact = encoder.double()(*arguments)
    assert torch.isfinite(found).all()
    assert (found - exact).abs().max() <= 1e-5 + 20 * (plain - exact).abs().max()


def test_what_is_wrapped_is_called(shared: list[bool]) -> None:
    encoder, calls = network(), []
    encoder.layers[0].qkv.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    check(encoder, without(torch.arange(4, 24), [2, 3, 4]), [0] * 3, first_only=False)
    assert calls
    assert not shared


def test_bfloat16() -> None:
    encoder, copies = network().to(torch.bfloat16), without(torch.arange(4, 34), list(range(8)))
    with torch.inference_mode():
        found = copies_forward(encoder, torch.cat(copies), [29] * 8, [0] * 8, first_only=True)
        wanted = encoder(torch.cat(copies), [29] * 8, first_only=True)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, atol=0.06, rtol=0)
