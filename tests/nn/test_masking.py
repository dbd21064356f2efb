from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfm.nn import BertConfig, BertEncoder, pool_mean
from scfm.nn.masking import masked_outputs

CONFIG = BertConfig(60, 16, 3, 2, 32, 48)
MASK = 1


def network(n_layers: int = 3, scale: float = 1.0, path: str = "auto", seed: int = 0) -> BertEncoder:
    torch.manual_seed(seed)
    encoder = BertEncoder(CONFIG, n_layers, attention=path).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(scale).add_(0.05 * torch.randn_like(parameter))
    return encoder


def pool(first_only: bool):  # type: ignore[no-untyped-def]
    return (lambda hidden, _: hidden) if first_only else pool_mean


def one_by_one(encoder: BertEncoder, cell: torch.Tensor, positions: torch.Tensor, first_only: bool) -> torch.Tensor:
    """Each copy by itself."""
    rows = []
    for position in positions.tolist():
        copy = cell.clone()
        copy[position] = MASK
        rows.append(pool(first_only)(encoder(copy, [len(copy)], first_only=first_only), [len(copy)]))
    return torch.cat(rows) if rows else torch.empty(0, CONFIG.hidden_size)


@pytest.mark.parametrize("path", ["cells", "padded"])
@pytest.mark.parametrize("n_layers", [0, 1, 2, 3])
@pytest.mark.parametrize("first_only", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 50, 10_000])
def test_equals_copies_one_by_one(n_layers: int, first_only: bool, max_tokens: int, path: str) -> None:
    encoder = network(n_layers, 3.0, path)
    cells = [torch.randint(2, 60, (n,)) for n in (20, 1, 7)]
    cells = [(cell, torch.arange(0, len(cell), step)) for cell, step in zip(cells, (1, 1, 2), strict=True)]
    cells.append((torch.tensor([5, 6, 7]), torch.empty(0, dtype=torch.int64)))
    with torch.inference_mode():
        found = masked_outputs(encoder, cells, MASK, pool(first_only), first_only=first_only, max_tokens=max_tokens)
        for (cell, positions), rows in zip(cells, found, strict=True):
            torch.testing.assert_close(rows, one_by_one(encoder, cell, positions, first_only), atol=2e-5, rtol=0)


@given(st.integers(0, 1000), st.sampled_from([0.0, 1.0, 8.0, 30.0, 100.0]), st.integers(2, 40))
def test_also_where_one_key_takes_all_attention(seed: int, scale: float, n: int) -> None:
    """The softmax of the cell cannot be mended by subtraction then; in float64 it is compared with itself."""
    encoder = network(2, scale, seed=seed)
    cell, positions = torch.randint(2, 60, (n,)), torch.arange(n)
    with torch.inference_mode():
        (found,) = masked_outputs(encoder, [(cell, positions)], MASK, pool(True), first_only=True, max_tokens=100)
        exact = one_by_one(encoder.double(), cell, positions, True)
        plain = one_by_one(encoder.float(), cell, positions, True)
    assert torch.isfinite(found).all()
    allowed = 1e-5 + 20 * (plain - exact).abs().max()
    assert (found - exact).abs().max() <= allowed


def test_bfloat16() -> None:
    encoder = network(3).to(torch.bfloat16)
    cell, positions = torch.randint(2, 60, (30,)), torch.arange(30)
    with torch.inference_mode():
        (found,) = masked_outputs(encoder, [(cell, positions)], MASK, pool(True), first_only=True, max_tokens=100)
        wanted = one_by_one(encoder, cell, positions, True)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, atol=0.06, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda() -> None:
    encoder = network(3)
    cells = [(cell, torch.arange(len(cell))) for cell in (torch.randint(2, 60, (n,)) for n in (40, 12))]
    with torch.inference_mode():
        wanted = masked_outputs(encoder, cells, MASK, pool(True), first_only=True, max_tokens=200)
        found = masked_outputs(encoder.cuda(), cells, MASK, pool(True), first_only=True, max_tokens=200)
    for there, here in zip(found, wanted, strict=True):
        torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=0)
