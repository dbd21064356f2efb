"""What the encoders share: threads over rows, counting model genes, compaction of sequences."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.encode.rank_kernels import count_model_genes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scfm._types import CountBlock

__all__ = ["compact", "count_genes", "in_threads"]


def in_threads(encode: Callable[[tuple[int, int]], None], indptr: NDArray[np.int64], threads: int) -> None:
    """Run ``encode`` over row ranges with about equally many stored values each."""
    n_cells = len(indptr) - 1
    borders = np.searchsorted(indptr, np.linspace(0, indptr[-1], threads + 1)[1:-1])
    borders = np.unique(np.concatenate([[0], borders, [n_cells]]))
    ranges = list(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True))
    if len(ranges) <= 1:
        for rows in ranges:
            encode(rows)
        return
    with ThreadPoolExecutor(len(ranges)) as pool:
        list(pool.map(encode, ranges))


def count_genes(
    block: CountBlock, data: NDArray[np.generic], column_tokens: NDArray[np.int32], *, keep_zeros: bool, threads: int
) -> NDArray[np.int64]:
    """Count the stored values of model genes in each cell.

    Raises
    ------
    ValueError
        If a count is negative, infinite or NaN.
    """
    counts, bad = np.empty(block.n_cells, np.int64), list[int]()

    def count(rows: tuple[int, int]) -> None:
        first, last = rows
        borders = block.indptr[first : last + 1]
        at = count_model_genes(borders, block.indices, data, column_tokens, keep_zeros, counts[first:last])
        if at >= 0:
            bad.append(at)

    in_threads(count, block.indptr, threads)
    if bad:
        raise ValueError(_bad_count_message(block, min(bad)))
    return counts


def compact(offsets: NDArray[np.int64], lengths: NDArray[np.int64], *values: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Keep the first ``lengths`` entries of the slice of each cell between ``offsets``."""
    capacity = np.diff(offsets)
    if np.array_equal(capacity, lengths):
        return values
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], capacity)
    used = position < np.repeat(lengths, capacity)
    return tuple(array[used] for array in values)


def _bad_count_message(block: CountBlock, at: int) -> str:
    """Error message that locates the value at position ``at`` of a block."""
    row = int(np.searchsorted(block.indptr, at, side="right")) - 1
    return (
        f"Cell {block.row0 + row} holds the value {block.data[at]} in column {int(block.indices[at])}: counts must be "
        "finite and not negative. Point `layer=` or `use_raw=` at the raw counts, or clean the matrix."
    )
