"""Causal attention with biased keys and capped scores against a dense float64 version."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from scfm.nn import causal
from scfm.nn.causal import FLEX_BLOCK, CausalPacking, CausalPath, attend_causal

if TYPE_CHECKING:
    from torch import Tensor

CPU = torch.device("cpu")
N_HEADS, WIDTH = 2, 16
LENGTHS = [
    [1],
    [FLEX_BLOCK],
    [1, 1, 1],
    [256, 128],
    [127, 129],
    [5, 130, 2],
    [384, 1],
    [60, 70, 3, 300, 40],
    [640],
]
HAS_FLEX = find_spec("torch.nn.attention.flex_attention") is not None  # from torch 2.5 on
PATHS: list[CausalPath] = ["tiles", "flex"] if HAS_FLEX else ["tiles"]
needs_flex = pytest.mark.skipif(not HAS_FLEX, reason="this torch has no flex_attention")
UNCOMPILED = "ignore:flex_attention called without torch.compile"  # compiled on CUDA only
pytestmark = [pytest.mark.filterwarnings(UNCOMPILED), pytest.mark.usefixtures("one_thread")]


def draw(n: int, seed: int = 0, scale: float = 1.5) -> tuple[Tensor, Tensor]:
    """Queries, keys and values, with scores near the bound, and biases as those of counts up to 30."""
    generator = torch.Generator().manual_seed(seed)
    qkv = scale * torch.randn(n, 3 * WIDTH, generator=generator)
    return qkv, torch.log1p(30 * torch.rand(n, generator=generator))


def dense(qkv: Tensor, bias: Tensor, lengths: list[int], softcap: float) -> Tensor:
    """All cells at once with one mask, in float64."""
    q, k, v = (part.unflatten(1, (N_HEADS, -1)).transpose(0, 1) for part in qkv.double().chunk(3, dim=1))
    scores = q @ k.mT / q.shape[-1] ** 0.5 + bias.double()
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    cell = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    visible = (cell[:, None] == cell).tril()
    return (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v).transpose(0, 1).flatten(1)


def run(qkv: Tensor, bias: Tensor, lengths: list[int], softcap: float, path: CausalPath = "auto") -> Tensor:
    return attend_causal(qkv, bias, CausalPacking(lengths, CPU), N_HEADS, softcap, path)


def assert_close(ours: Tensor, theirs: Tensor, atol: float = 5e-6) -> None:
    torch.testing.assert_close(ours.double(), theirs, atol=atol, rtol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("softcap", [0.0, 10.0])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equal_to_dense(path: CausalPath, softcap: float, lengths: list[int]) -> None:
    qkv, bias = draw(sum(lengths))
    ours = run(qkv, bias, lengths, softcap, path)
    assert ours.dtype == torch.float32
    assert_close(ours, dense(qkv, bias, lengths, softcap))


@pytest.mark.parametrize("softcap", [0.0, 10.0])
@pytest.mark.parametrize("tile", [1, 2 * 100 * 40, 2 * 100 * 64])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 100])
def test_size_of_tiles_plays_no_part(monkeypatch: pytest.MonkeyPatch, tile: int, length: int, softcap: float) -> None:
    monkeypatch.setattr(causal, "TILE_WEIGHTS", tile)
    qkv, bias = draw(length + 3)
    assert_close(run(qkv, bias, [length, 3], softcap, "tiles"), dense(qkv, bias, [length, 3], softcap))


def test_many_random_packings() -> None:
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        lengths = torch.randint(1, 90, (7,), generator=generator).tolist()
        qkv, bias = draw(sum(lengths), seed)
        expected = dense(qkv, bias, lengths, 10.0)
        for path in PATHS:
            assert_close(run(qkv, bias, lengths, 10.0, path), expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("softcap", [0.0, 10.0, 200.0])
def test_large_scores(path: CausalPath, softcap: float) -> None:
    """Scores of some hundreds, whose exponentials float32 cannot hold."""
    qkv, bias = draw(50, scale=12)
    ours = run(qkv, bias, [40, 10], softcap, path)
    assert_close(ours, dense(qkv, bias, [40, 10], softcap), 1e-3)


@pytest.mark.parametrize("path", PATHS)
def test_the_first_token_sees_itself_only(path: CausalPath) -> None:
    qkv, bias = draw(9)
    ours = run(qkv, bias, [4, 5], 10.0, path)
    torch.testing.assert_close(ours[[0, 4]], qkv[[0, 4], 2 * WIDTH :])


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_changed(path: CausalPath) -> None:
    qkv, bias = draw(40)
    before = qkv.clone(), bias.clone()
    run(qkv, bias, [40], 10.0, path)
    run(qkv, bias, [40], 0.0, path)
    assert torch.equal(qkv, before[0])
    assert torch.equal(bias, before[1])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("softcap", [0.0, 10.0])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_low_precision(path: CausalPath, softcap: float, dtype: torch.dtype, atol: float) -> None:
    lengths = [200, 57]
    qkv, bias = draw(sum(lengths))
    low = run(qkv.to(dtype), bias, lengths, softcap, path)
    exact = dense(qkv.to(dtype), bias, lengths, softcap)
    assert low.dtype == dtype
    assert_close(low, exact, atol)
    assert torch.cosine_similarity(low.double(), exact, dim=1).min() > 0.999


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("softcap", [0.0, 10.0])
def test_cells_without_tokens(path: CausalPath, softcap: float) -> None:
    qkv, bias = draw(137)
    lengths = [0, 5, 0, 130, 2, 0]
    assert_close(run(qkv, bias, lengths, softcap, path), dense(qkv, bias, lengths, softcap))


@pytest.mark.parametrize("path", [*PATHS, "auto"])
@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_no_tokens(path: CausalPath, lengths: list[int]) -> None:
    assert run(torch.empty(0, 3 * WIDTH), torch.empty(0), lengths, 10.0, path).shape == (0, WIDTH)


@pytest.mark.parametrize("softcap", [0.0, 10.0])
def test_gradients(softcap: float) -> None:
    qkv, bias = draw(30)
    weights = torch.linspace(-1, 1, WIDTH)
    qkv.requires_grad_()
    bias.requires_grad_()
    (run(qkv, bias, [20, 10], softcap, "tiles") * weights).sum().backward()
    ours = qkv.grad, bias.grad
    qkv.grad = bias.grad = None
    (dense(qkv, bias, [20, 10], softcap) * weights).sum().backward()
    for mine, theirs in zip(ours, (qkv.grad, bias.grad), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@needs_flex
@pytest.mark.parametrize("lengths", [*LENGTHS, [130, 0, 5, 128, 300, 1], [2] * 200, [1000, 24]], ids=str)
def test_block_mask(lengths: list[int]) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    packing = CausalPacking(lengths, CPU)
    ours = packing.block_mask
    n = -(-sum(lengths) // FLEX_BLOCK) * FLEX_BLOCK
    theirs = create_block_mask(ours.mask_mod, None, None, n, n, device="cpu", BLOCK_SIZE=FLEX_BLOCK)
    assert ours.shape == theirs.shape
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert packing.block_mask is ours

    cell = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    at = torch.arange(len(cell))
    visible = ours.mask_mod(torch.tensor(0), torch.tensor(0), at[:, None], at)
    assert torch.equal(visible, (cell[:, None] == cell).tril())


class OnCuda(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


@pytest.fixture
def flex(monkeypatch: pytest.MonkeyPatch) -> causal._Flex:
    fresh = causal._Flex()
    monkeypatch.setattr(causal, "_flex", fresh)
    return fresh


class Compiled:
    """In the place of compiled flex attention: computes without compiling, unless it fails at the options it gets."""

    def __init__(self, failures: list[Exception | None]) -> None:
        self.failures = failures
        self.options: list[Any] = []

    def __call__(self, *heads: Tensor, kernel_options: Any = None, **arguments: Any) -> Tensor:
        self.options.append(kernel_options)
        failure = self.failures.pop(0)
        if failure is not None:
            raise failure
        from torch.nn.attention.flex_attention import flex_attention

        plain: list[Any] = [part.as_subclass(torch.Tensor) for part in heads]
        return cast("Tensor", flex_attention(*plain, **arguments))


def run_on_cuda(
    monkeypatch: pytest.MonkeyPatch, compiled: Compiled, path: CausalPath = "auto"
) -> tuple[Tensor, Tensor]:
    """What comes out on a device that is called CUDA, and what should."""
    monkeypatch.setattr(causal, "_flex_function", {True: compiled}.__getitem__)
    qkv, bias = draw(150)
    ours = run(qkv.as_subclass(OnCuda), bias, [140, 10], 10.0, path)
    return ours.as_subclass(torch.Tensor), dense(qkv, bias, [140, 10], 10.0)


@needs_flex
def test_cuda_takes_flex(monkeypatch: pytest.MonkeyPatch, flex: causal._Flex) -> None:
    compiled = Compiled([None, None])
    for _ in range(2):
        assert_close(*run_on_cuda(monkeypatch, compiled))
    assert not any(compiled.options)
    assert not flex.failed


@needs_flex
def test_smaller_tiles_where_large_ones_do_not_fit(monkeypatch: pytest.MonkeyPatch, flex: causal._Flex) -> None:
    compiled = Compiled([RuntimeError("shared memory"), None, None])
    for _ in range(2):
        assert_close(*run_on_cuda(monkeypatch, compiled))
    assert compiled.options == [None, causal._SMALL_TILES, causal._SMALL_TILES]
    assert not flex.failed


@needs_flex
def test_without_flex_where_it_does_not_work(
    monkeypatch: pytest.MonkeyPatch, flex: causal._Flex, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = Compiled([RuntimeError("no triton"), TypeError("no triton")])
    with caplog.at_level(logging.WARNING, logger="scfm"):
        for _ in range(2):
            assert_close(*run_on_cuda(monkeypatch, compiled))
    assert flex.failed
    assert len(compiled.options) == 2, "flex attention was tried again"
    assert [record.getMessage() for record in caplog.records] == [
        "flex_attention does not work here (TypeError); continuing without it."
    ]


@needs_flex
def test_flex_that_was_asked_for_does_not_fall_back(monkeypatch: pytest.MonkeyPatch, flex: causal._Flex) -> None:
    compiled = Compiled([RuntimeError("first"), RuntimeError("second")])
    with pytest.raises(RuntimeError, match="second"):
        run_on_cuda(monkeypatch, compiled, "flex")
    assert not flex.failed


@needs_flex
@pytest.mark.parametrize("failures", [0, 1])
def test_lack_of_memory_is_no_failure_of_flex(
    monkeypatch: pytest.MonkeyPatch, flex: causal._Flex, failures: int
) -> None:
    compiled = Compiled([RuntimeError("shared memory")] * failures + [torch.OutOfMemoryError("full"), None])
    with pytest.raises(torch.OutOfMemoryError):
        run_on_cuda(monkeypatch, compiled)
    assert_close(*run_on_cuda(monkeypatch, compiled))
    assert not flex.failed


@pytest.mark.gpu
@pytest.mark.parametrize("path", ["tiles", "flex"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda(path: CausalPath, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    lengths = [300, 57, 1]
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), 3 * 64, generator=generator).to(dtype)
    bias = torch.rand(sum(lengths), generator=generator)
    expected = attend_causal(qkv.float(), bias, CausalPacking(lengths, CPU), N_HEADS, 10.0)
    cuda = torch.device("cuda")
    ours = attend_causal(qkv.to(cuda), bias.to(cuda), CausalPacking(lengths, cuda), N_HEADS, 10.0, path)
    assert torch.cosine_similarity(ours.float().cpu(), expected, dim=1).min() > 0.9995
