"""Causal self-attention with a bias per key and capped scores, over packed cells.

For a query ``q`` and the keys ``k`` of its cell up to its own position, the weights are the softmax of
``cap · tanh((q · k / √head_dim + bias_k) / cap)``. ``"tiles"`` computes them with plain matrix products on tiles of
queries, on any device; ``"flex"`` with :func:`torch.nn.attention.flex_attention.flex_attention`, compiled on CUDA.
Both give the same numbers.
"""

from __future__ import annotations

import logging
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from scfm.nn.attention import TILE_WEIGHTS, AttentionTile, Lengths, Packing
from scfm.nn.device import to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CausalPacking", "CausalPath", "attend_causal", "causal_tiles"]

CausalPath = Literal["auto", "tiles", "flex"]
"""How attention runs: ``"auto"`` takes ``"flex"`` on CUDA and ``"tiles"`` elsewhere."""

SMALL_CAP = 40.0
"""Cap up to which sums of exponentials of scores stay far below the limits of float32."""
FLEX_BLOCK = 128
FULL_BYTES = 4
"""Smallest itemsize whose products are exact enough for scores."""
_SMALL_TILES = {"BLOCK_M": 32, "BLOCK_N": 32}

logger = logging.getLogger("scfm")


class CausalPacking(Packing):
    """Where each cell lies among the packed tokens of a batch, with a block mask for flex attention.

    Parameters
    ----------
    lengths
        Tokens of each cell.
    device
        Device of the packed tensors.
    """

    def __init__(self, lengths: Lengths, device: torch.device) -> None:
        super().__init__(lengths, device, "cells")

    @cached_property
    def block_mask(self) -> Any:
        """Blocks of keys that each block of queries sees; the batch is one sequence, padded to whole blocks."""
        from torch.nn.attention.flex_attention import BlockMask

        lengths = torch.tensor([*self.lengths, -self.n_tokens % FLEX_BLOCK])
        cell = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        start = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        blocks = torch.arange(len(cell) // FLEX_BLOCK)
        first, last = blocks * FLEX_BLOCK, blocks * FLEX_BLOCK + FLEX_BLOCK - 1
        seen = (blocks >= start[first][:, None] // FLEX_BLOCK) & (blocks <= blocks[:, None])
        full = (cell[first] == cell[last][:, None]) & (blocks < blocks[:, None])
        cell = to_device(cell, self.device)

        def visible(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (cell[query] == cell[key])

        parts = [to_device(part, self.device) for which in (seen & ~full, full) for part in _listed(which)]
        make: Any = BlockMask.from_kv_blocks
        return make(*parts, BLOCK_SIZE=FLEX_BLOCK, mask_mod=visible)


def attend_causal(
    qkv: Tensor, bias: Tensor, packing: CausalPacking, n_heads: int, softcap: float, path: CausalPath = "auto"
) -> Tensor:
    """Causal self-attention of each cell.

    Parameters
    ----------
    qkv
        Queries, keys and values of the packed tokens side by side, shape ``(T, 3 d)``.
    bias
        Added to the scaled score of each key, float32, shape ``(T,)``.
    packing
        Where each cell lies.
    n_heads
        Number of heads; each has ``d / n_heads`` features.
    softcap
        Bound of the scores, applied after the bias; 0 for no bound.
    path
        How attention runs; see :data:`CausalPath`.

    Returns
    -------
    The attended values, shape ``(T, d)``, dtype of ``qkv``.
    """
    if packing.n_tokens == 0:
        return qkv[:, : qkv.shape[1] // 3]
    if path == "flex" or (path == "auto" and qkv.device.type == "cuda" and not _flex.failed):
        try:
            return _flex(qkv, bias, packing, n_heads, softcap)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if path == "flex":
                raise
            _flex.failed = True
            logger.warning("flex_attention does not work here (%s); continuing without it.", type(error).__name__)
    cells = zip(qkv.split(packing.lengths), bias.split(packing.lengths), strict=True)
    return torch.cat([_attend_tiles(part, key_bias, n_heads, softcap) for part, key_bias in cells])


def causal_tiles(
    qkv: Tensor, bias: Tensor, packing: CausalPacking, n_heads: int, softcap: float
) -> Iterator[AttentionTile]:
    """The weights by which :func:`attend_causal` averages values, for those who look at them.

    Parameters
    ----------
    qkv, bias, packing, n_heads, softcap
        As for :func:`attend_causal`.

    Yields
    ------
    Tiles of queries, cell by cell; the weights of keys behind a query are 0.
    """
    for cell, part in enumerate(qkv.split(packing.lengths)):
        first = packing.starts[cell]
        for start, weights in _tiles(part, bias[first : first + len(part)], n_heads, softcap):
            weights = weights / weights.sum(dim=-1, keepdim=True)
            yield AttentionTile(cell, start, F.pad(weights, (0, len(part) - weights.shape[-1])))


def _attend_tiles(qkv: Tensor, bias: Tensor, n_heads: int, softcap: float) -> Tensor:
    """Attention of one cell, a tile of queries at a time."""
    n, d = len(qkv), qkv.shape[1] // 3
    if n == 0:
        return qkv[:, :d]
    v = qkv.view(n, 3, n_heads, -1)[:, 2].transpose(0, 1)
    parts = []
    for _, weights in _tiles(qkv, bias, n_heads, softcap):
        seen, total = v[:, : weights.shape[-1]], weights.sum(dim=-1, keepdim=True)
        if v.itemsize >= FULL_BYTES:
            parts.append(weights @ seen / total)
        else:  # sums of unscaled weights overflow float16
            parts.append((weights / total).to(v.dtype) @ seen)
    return torch.cat(parts, dim=1).transpose(0, 1).reshape(n, d)


def _tiles(qkv: Tensor, bias: Tensor, n_heads: int, softcap: float) -> Iterator[tuple[int, Tensor]]:
    """First query and weights of tiles of one cell, not normalised; keys after a tile are not read."""
    n, d = len(qkv), qkv.shape[1] // 3
    q, k, _ = qkv.view(n, 3, n_heads, d // n_heads).permute(1, 2, 0, 3).unbind(0)
    cap = softcap if softcap > 0 else 1.0
    q = q * ((d // n_heads) ** -0.5 / cap)
    bias = bias / cap
    rows = max(32, TILE_WEIGHTS // max(1, n * n_heads))
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        yield start, _weights(_scores(q[:, start:stop], k[:, :stop], bias[:stop]), start, softcap)


def _scores(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """Scores with bias, float32 whatever the inputs are; shape ``(heads, queries, keys)``."""
    if q.itemsize >= FULL_BYTES:
        return torch.baddbmm(bias, q, k.transpose(1, 2))
    return (q @ k.transpose(1, 2)).float() + bias


def _weights(scores: Tensor, start: int, cap: float) -> Tensor:
    """Exponentials of a tile of scores (given over ``cap``), not normalised, zero after each query.

    Scores below a small cap need no common scale. Works in place where autograd does not need the scores.
    """
    if 0 < cap <= SMALL_CAP and not scores.requires_grad:
        return scores.tanh_().mul_(cap).exp_().tril_(start)
    scores = cap * torch.tanh(scores) if cap > 0 else scores
    behind = torch.ones_like(scores[0], dtype=torch.bool).triu(start + 1)
    return torch.softmax(scores.masked_fill(behind, -torch.inf), dim=-1)


class _Flex:
    """Flex attention over a batch as one sequence, in which a token sees only its own cell."""

    def __init__(self) -> None:
        self.failed = False
        self._options: dict[str, int] | None = None

    def __call__(self, qkv: Tensor, bias: Tensor, packing: CausalPacking, n_heads: int, softcap: float) -> Tensor:
        n, d = len(qkv), qkv.shape[1] // 3
        mask = packing.block_mask
        missing = -n % FLEX_BLOCK  # whole blocks, so that few different shapes are compiled
        q, k, v = F.pad(qkv, (0, 0, 0, missing)).view(n + missing, 3, n_heads, -1).unbind(1)
        bias = F.pad(bias, (0, missing))

        def score(value: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, key: Tensor) -> Tensor:
            value = value + bias[key]
            return softcap * torch.tanh(value / softcap) if softcap > 0 else value

        heads = [part.transpose(0, 1).unsqueeze(0) for part in (q, k, v)]
        out = self._run(qkv.device, heads, score, mask)
        return out[0].transpose(0, 1).reshape(n + missing, d)[:n]

    def _run(self, device: torch.device, heads: list[Tensor], score: Any, mask: Any) -> Tensor:
        if device.type != "cuda":
            return _flex_function(False)(*heads, score_mod=score, block_mask=mask)
        compiled = _flex_function(True)
        if self._options is None:
            try:
                out = compiled(*heads, score_mod=score, block_mask=mask)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # noqa: BLE001  the tiles of a large GPU do not fit the shared memory of a small one
                self._options = _SMALL_TILES
            else:
                self._options = {}
                return out
        return compiled(*heads, score_mod=score, block_mask=mask, kernel_options=self._options)


_flex = _Flex()


@cache
def _flex_function(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    function: Any = torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
    return cast("Callable[..., Tensor]", function)


def _listed(which: Tensor) -> tuple[Tensor, Tensor]:
    """Number of True columns of each row, and their positions first in each row; int32, with batch and head axes."""
    order = torch.argsort(which.to(torch.int8), dim=1, descending=True, stable=True)
    return which.sum(dim=1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]
