"""Group the cells of a block into batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._types import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scfm._types import TokenBlock

__all__ = ["make_batch", "plan_batches"]


def plan_batches(block: TokenBlock, max_tokens: int, *, padded: bool = False) -> Iterator[TokenBatch]:
    """Split the sequences of a block, longest first, into batches of at most ``max_tokens`` tokens.

    The largest batch comes first, so that running out of memory shows at once. A sequence longer than ``max_tokens``
    gets a batch of its own; empty sequences are skipped.

    Parameters
    ----------
    block
        Token sequences.
    max_tokens
        Token budget of a batch.
    padded
        Count every sequence as long as the longest of its batch, for networks that pad.
    """
    lengths = np.diff(block.offsets)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    start = 0
    while start < len(order):
        stop = start + _n_fitting(lengths[order[start:]], max_tokens, padded=padded)
        yield make_batch(block, order[start:stop])
        start = stop


def make_batch(block: TokenBlock, sequences: NDArray[np.int64]) -> TokenBatch:
    """Make a batch of some sequences of a block, in the order given."""
    values = None if block.values is None else _gather(block.values, block.offsets, sequences)
    return TokenBatch(
        rows=block.row0 + sequences if block.rows is None else block.rows[sequences],
        tokens=_gather(block.tokens, block.offsets, sequences).astype(np.int64),
        lengths=np.diff(block.offsets)[sequences],
        values=values,
        tags=None if block.tags is None else block.tags[sequences],
    )


def _gather(values: NDArray[Any], offsets: NDArray[np.int64], cells: NDArray[np.int64]) -> NDArray[Any]:
    return np.concatenate([values[:0], *(values[offsets[cell] : offsets[cell + 1]] for cell in cells)])


def _n_fitting(lengths: np.ndarray, max_tokens: int, *, padded: bool) -> int:
    """Number of sequences, longest first, that fit into a batch; at least one."""
    head = lengths[: max(1, max_tokens)]
    costs = np.arange(1, len(head) + 1) * head[0] if padded else np.cumsum(head)
    return max(1, int(np.searchsorted(costs, max_tokens, side="right")))
