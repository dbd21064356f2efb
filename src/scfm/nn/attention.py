"""Self-attention over packed cells: no token of one cell attends to a token of another cell.

The tokens of a batch lie one cell after the other, without padding. :class:`Packing` holds where each cell lies;
:func:`attend` and :func:`attend_first` apply softmax(q kᵀ / √head_dim) v to each cell, either cell by cell (``"cells"``,
CPU) or on a padded copy with a mask (``"padded"``, one large kernel for an accelerator). Both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scfm.nn.device import to_device

__all__ = ["AttentionPath", "AttentionTile", "Lengths", "Packing", "attend", "attend_first", "attention_tiles"]

AttentionPath = Literal["auto", "cells", "padded"]
"""How attention runs: ``"auto"`` takes ``"cells"`` on the CPU and ``"padded"`` elsewhere."""

TILE_BYTES = 2**21
"""Size of a tile of attention scores per thread; 1 to 4 MiB are equally fast, other sizes slower (Zen 4)."""

TILE_WEIGHTS = 2**21
"""Attention weights of a tile that is returned; 8 MiB."""

Lengths = Sequence[int] | np.ndarray | Tensor
"""Tokens of each cell: a list of ints, an integer array, or an integer tensor on the CPU."""


class AttentionTile(NamedTuple):
    """Attention weights of some consecutive queries of a cell."""

    cell: int
    """Number of the cell in the batch."""
    start: int
    """Position of the first query in the cell."""
    weights: Tensor
    """float32, shape ``(n_heads, n_queries, n_tokens)``; each row adds up to 1."""


@dataclass(frozen=True)
class _Padded:
    """Where packed tokens lie in a padded ``(n_cells, longest)`` grid."""

    shape: tuple[int, int]
    index: Tensor
    """Position of each packed token in the flattened grid, int64, shape ``(T,)``."""
    mask: Tensor | None
    """True at real tokens, shape ``(n_cells, 1, 1, longest)``; None if all cells are equally long."""


class Packing:
    """Where each cell lies among the packed tokens of a batch.

    Parameters
    ----------
    lengths
        Tokens of each cell. Cells without tokens are allowed.
    device
        Device of the packed tensors.
    path
        How attention runs; see :data:`AttentionPath`.
    """

    def __init__(self, lengths: Lengths, device: torch.device, path: AttentionPath = "auto") -> None:
        self.lengths = [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor | np.ndarray) else lengths)]
        if any(n < 0 for n in self.lengths):
            msg = f"lengths must not be negative, got {min(self.lengths)}."
            raise ValueError(msg)
        self.device = device
        self.starts = [0, *accumulate(self.lengths)][:-1]
        self.n_tokens = sum(self.lengths)
        use_padded = path == "padded" or (path == "auto" and device.type != "cpu")
        self.padded = self._pad() if use_padded else None

    def runs(self) -> list[tuple[int, int, int]]:
        """Runs of cells of equal length as (first token, number of cells, length), without empty cells."""
        runs, start = [], 0
        for length, group in groupby(self.lengths):
            n_cells = len(list(group))
            if length:
                runs.append((start, n_cells, length))
            start += n_cells * length
        return runs

    def positions(self) -> Tensor:
        """Position of each packed token within its cell, int64, shape ``(T,)``."""
        within = torch.cat([torch.empty(0, dtype=torch.int64), *(torch.arange(n) for n in self.lengths)])
        return to_device(within, self.device)

    def first(self) -> Tensor:
        """Position of the first token of each cell among the packed tokens, int64, shape ``(n_cells,)``."""
        if 0 in self.lengths:
            msg = f"Cell {self.lengths.index(0)} of the batch has no token, so it has no first token."
            raise ValueError(msg)
        return to_device(torch.tensor(self.starts, dtype=torch.int64), self.device)

    def _pad(self) -> _Padded:
        lengths = [n for n in self.lengths if n]  # an empty cell would be a row of the mask without a key
        longest = max(lengths, default=0)
        index = [torch.empty(0, dtype=torch.int64)]
        index += [torch.arange(i * longest, i * longest + n) for i, n in enumerate(lengths)]
        mask = None
        if lengths and min(lengths) < longest:
            mask = to_device((torch.arange(longest) < torch.tensor(lengths)[:, None])[:, None, None, :], self.device)
        return _Padded((len(lengths), longest), to_device(torch.cat(index), self.device), mask)


def attend(qkv: Tensor, packing: Packing, n_heads: int, dropout: float = 0.0) -> Tensor:
    """Self-attention of each cell.

    Parameters
    ----------
    qkv
        Queries, keys and values of the packed tokens side by side, shape ``(T, 3 d)``.
    packing
        Where each cell lies.
    n_heads
        Number of heads; each has ``d / n_heads`` features.
    dropout
        Dropout probability of the attention weights.

    Returns
    -------
    The attended values, shape ``(T, d)``, dtype of ``qkv``.
    """
    if packing.n_tokens == 0:
        return qkv[:, : qkv.shape[1] // 3]
    if packing.padded is not None:
        grid = packing.padded
        padded = qkv.new_zeros(grid.shape[0] * grid.shape[1], qkv.shape[1]).index_copy(0, grid.index, qkv)
        q, k, v = _heads(padded, grid.shape, 3, n_heads)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=grid.mask, dropout_p=dropout)
        return out.transpose(1, 2).reshape(len(padded), -1)[grid.index]
    if qkv.dtype == torch.bfloat16 and qkv.device.type == "cpu" and not qkv.requires_grad and not dropout:
        cells = [cell for cell in qkv.split(packing.lengths) if len(cell)]
        return torch.cat([_attend_tiles(cell, n_heads) for cell in cells])
    parts, runs = [], packing.runs()
    # split, not sliced: the gradient of each slice would be as large as all of qkv
    for (_, n_cells, length), run in zip(runs, qkv.split([n * length for _, n, length in runs]), strict=True):
        q, k, v = _heads(run, (n_cells, length), 3, n_heads)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        parts.append(out.transpose(1, 2).reshape(n_cells * length, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend_first(queries: Tensor, x: Tensor, packing: Packing, scale: float) -> Tensor:
    """Attention of the first token of each cell to the hidden states of all tokens of its cell.

    Parameters
    ----------
    queries
        Queries of the first token of each cell, one per head, shape ``(n_cells, n_heads, d)``.
    x
        Hidden states of all packed tokens, which are keys and values, shape ``(T, d)``.
    packing
        Where each cell lies; every cell has at least one token.
    scale
        Factor of the scores.

    Returns
    -------
    The attended states, shape ``(n_cells, n_heads, d)``, dtype of ``x``.
    """
    if packing.n_tokens == 0:
        return queries
    if packing.padded is not None:
        grid = packing.padded
        padded = x.new_zeros(grid.shape[0] * grid.shape[1], x.shape[1]).index_copy(0, grid.index, x)
        return _attend_states(queries, padded.view(*grid.shape, -1), scale, grid.mask)
    parts, cell = [], 0
    for start, n_cells, length in packing.runs():
        states = x[start : start + n_cells * length].view(n_cells, length, -1)
        parts.append(_attend_states(queries[cell : cell + n_cells], states, scale, None))
        cell += n_cells
    return torch.cat(parts)


def attention_tiles(qkv: Tensor, packing: Packing, n_heads: int) -> Iterator[AttentionTile]:
    """The weights by which :func:`attend` averages values, for those who look at them.

    Parameters
    ----------
    qkv, packing, n_heads
        As for :func:`attend`.

    Yields
    ------
    Tiles of queries, cell by cell; no more than one is in memory at a time.
    """
    for cell, part in enumerate(qkv.split(packing.lengths)):
        n, d = len(part), part.shape[1] // 3
        q, k, _ = part.view(n, 3, n_heads, d // n_heads).permute(1, 2, 0, 3).unbind(0)
        q = q * (d // n_heads) ** -0.5
        rows = max(1, TILE_WEIGHTS // max(1, n * n_heads))
        for start in range(0, n, rows):
            scores = q[:, start : start + rows] @ k.transpose(1, 2)
            yield AttentionTile(cell, start, torch.softmax(scores.float(), dim=-1))


def _attend_states(queries: Tensor, states: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """:func:`attend_first` for states of shape ``(n_cells, length, d)``; the heads are the queries of a cell."""
    key = states[:, None]
    mask = None if mask is None else mask.expand(-1, 1, queries.shape[1], -1)
    return F.scaled_dot_product_attention(queries[:, None], key, key, attn_mask=mask, scale=scale)[:, 0]


def _attend_tiles(qkv: Tensor, n_heads: int) -> Tensor:
    """Self-attention of one cell, a tile of queries at a time; for bfloat16 on the CPU, without autograd.

    The fused kernel is no faster in bfloat16 than in float32, while plain matrix products use the bfloat16 units of
    the CPU: 34 against 57 ms at 2048 tokens, 4 heads of 64 (Zen 4, one thread). A tile of scores stays in the cache.
    """
    n, d = len(qkv), qkv.shape[1] // 3
    q, k, v = qkv.view(n, 3, n_heads, -1).permute(1, 2, 0, 3).contiguous().unbind(0)
    q = q * (d // n_heads) ** -0.5  # not in place: for a single token, q is a view of the input
    out = qkv.new_empty(n, n_heads, d // n_heads)
    rows = max(64, torch.get_num_threads() * TILE_BYTES // (n * qkv.itemsize))
    for head in range(n_heads):
        for start in range(0, n, rows):
            scores = q[head, start : start + rows] @ k[head].T
            out[start : start + rows, head] = torch.softmax(scores, dim=-1) @ v[head]
    return out.view(n, d)


def _heads(x: Tensor, shape: tuple[int, int], n_parts: int, n_heads: int) -> tuple[Tensor, ...]:
    """Split ``(cells * length, parts * d)`` into ``parts`` views of shape ``(cells, heads, length, head_dim)``."""
    return x.view(*shape, n_parts, n_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
