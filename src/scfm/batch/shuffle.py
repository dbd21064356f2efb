"""Batches with a fixed number of cells, in order or shuffled, for training."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from scfm._types import TokenBlock
from scfm.batch.plan import make_batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scfm._types import TokenBatch

__all__ = ["BUFFER_RANGES", "RANGE_ROWS", "fixed_size_batches", "ranges_of", "row_ranges"]

RANGE_ROWS = 1024
"""Consecutive cells that are read together."""
BUFFER_RANGES = 16
"""Ranges whose cells are shuffled together."""


def row_ranges(n_obs: int, rng: np.random.Generator | None) -> list[tuple[int, int]]:
    """Split the rows of a source into consecutive ranges; with ``rng`` in random order."""
    starts = np.arange(0, n_obs, RANGE_ROWS)
    if rng is not None:
        rng.shuffle(starts)
    return [(int(start), min(int(start) + RANGE_ROWS, n_obs)) for start in starts]


def ranges_of(cells: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of consecutive cells that cover the positions given, which are sorted."""
    borders = np.flatnonzero(np.diff(cells, prepend=-2) > 1)
    stops = np.append(borders[1:], len(cells))[: len(borders)]
    return [(int(cells[start]), int(cells[stop - 1]) + 1) for start, stop in zip(borders, stops, strict=True)]


def fixed_size_batches(
    ranges: Iterable[list[TokenBlock]], batch_size: int, rng: np.random.Generator | None, *, drop_last: bool
) -> Iterator[TokenBatch]:
    """Yield batches of ``batch_size`` cells, longest first within a batch; cells without tokens are skipped.

    Parameters
    ----------
    ranges
        Blocks of each range of cells.
    batch_size
        Number of cells of a batch.
    rng
        Shuffles the cells of :data:`BUFFER_RANGES` ranges at a time; ``None`` keeps their order.
    drop_last
        Drop the last batch if it is smaller.
    """
    waiting: list[TokenBlock] = []
    iterator = iter(ranges)
    while group := list(islice(iterator, 1 if rng is None else BUFFER_RANGES)):
        block = _joined([*waiting, *(block for blocks in group for block in blocks)])
        cells = np.flatnonzero(np.diff(block.offsets))
        if rng is not None:
            # the cells left over from the previous group come first and are shuffled already
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
    return make_batch(block, cells[np.argsort(-lengths, kind="stable")])


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
    batch = make_batch(block, cells)
    return TokenBlock(
        row0=0,
        tokens=batch.tokens.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(batch.lengths)]),
        n_genes=block.n_genes[cells],
        values=batch.values,
        rows=batch.rows,
    )
