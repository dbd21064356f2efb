"""Batches of as many cells each, in order or shuffled, for training."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from scfm._types import TokenBlock
from scfm.batch.plan import batch_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scfm._types import TokenBatch

__all__ = ["BUFFER_SPANS", "SPAN_ROWS", "even_batches", "runs_of", "spans_of"]

SPAN_ROWS = 1024
"""Consecutive cells that are read together when cells are shuffled."""
BUFFER_SPANS = 16
"""Spans among whose cells is drawn."""


def spans_of(n_obs: int, rng: np.random.Generator | None) -> list[tuple[int, int]]:
    """Ranges of consecutive cells that cover a source; in random order with ``rng``."""
    starts = np.arange(0, n_obs, SPAN_ROWS)
    if rng is not None:
        rng.shuffle(starts)
    return [(int(start), min(int(start) + SPAN_ROWS, n_obs)) for start in starts]


def runs_of(cells: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of consecutive cells that cover the positions given, which are sorted."""
    borders = np.flatnonzero(np.diff(cells, prepend=-2) > 1)
    stops = np.append(borders[1:], len(cells))[: len(borders)]
    return [(int(cells[start]), int(cells[stop - 1]) + 1) for start, stop in zip(borders, stops, strict=True)]


def even_batches(
    spans: Iterable[list[TokenBlock]], batch_size: int, rng: np.random.Generator | None, *, drop_last: bool
) -> Iterator[TokenBatch]:
    """Batches of ``batch_size`` cells, longest first within a batch; cells without tokens are left out.

    Parameters
    ----------
    spans
        Blocks of each range of cells.
    batch_size
        Cells of a batch.
    rng
        Draws from the cells of :data:`BUFFER_SPANS` ranges at a time; in the order of the ranges without it.
    drop_last
        Whether a last batch of fewer cells is left out.
    """
    waiting: list[TokenBlock] = []
    iterator = iter(spans)
    while group := list(islice(iterator, 1 if rng is None else BUFFER_SPANS)):
        block = _joined([*waiting, *(block for blocks in group for block in blocks)])
        cells = np.flatnonzero(np.diff(block.offsets))
        if rng is not None:
            # the cells that wait from the group before come first, as they were drawn
            n_waiting = len(waiting[0].offsets) - 1 if waiting else 0
            rng.shuffle(cells[n_waiting:])
        n_whole = len(cells) // batch_size * batch_size
        for at in range(0, n_whole, batch_size):
            yield _longest_first(block, cells[at : at + batch_size])
        waiting = [_taken(block, cells[n_whole:])]
    if waiting and not drop_last and len(waiting[0].offsets) > 1:
        yield _longest_first(waiting[0], np.arange(len(waiting[0].offsets) - 1))


def _longest_first(block: TokenBlock, cells: np.ndarray) -> TokenBatch:
    lengths = np.diff(block.offsets)[cells]
    return batch_of(block, cells[np.argsort(-lengths, kind="stable")])


def _joined(blocks: list[TokenBlock]) -> TokenBlock:
    lengths = np.concatenate([np.diff(block.offsets) for block in blocks])
    values = [block.values for block in blocks if block.values is not None]
    return TokenBlock(
        row0=0,
        tokens=np.concatenate([block.tokens for block in blocks]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        n_genes=np.concatenate([block.n_genes for block in blocks]),
        values=np.concatenate(values) if values else None,
        rows=np.concatenate([_rows(block) for block in blocks]),
    )


def _rows(block: TokenBlock) -> np.ndarray:
    return block.row0 + np.arange(len(block.offsets) - 1) if block.rows is None else block.rows


def _taken(block: TokenBlock, cells: np.ndarray) -> TokenBlock:
    batch = batch_of(block, cells)
    return TokenBlock(
        row0=0,
        tokens=batch.tokens.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(batch.lengths)]),
        n_genes=block.n_genes[cells],
        values=batch.values,
        rows=batch.rows,
    )
