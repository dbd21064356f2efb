from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfm._types import TokenBlock
from scfm.batch import plan_batches, prefetch

if TYPE_CHECKING:
    from collections.abc import Iterator


def block(lengths: list[int], row0: int = 0) -> TokenBlock:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenBlock(row0, np.arange(offsets[-1], dtype=np.int32), offsets, np.asarray(lengths, np.int64))


@given(lengths=st.lists(st.integers(0, 60), max_size=80), budget=st.integers(1, 300), padded=st.booleans())
def test_batches_hold_every_cell_once_within_the_budget(lengths: list[int], budget: int, padded: bool) -> None:
    counts = block(lengths, row0=100)
    batches = list(plan_batches(counts, budget, padded=padded))
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert sorted(rows) == [100 + i for i, length in enumerate(lengths) if length]
    seen = [length for batch in batches for length in batch.lengths.tolist()]
    assert seen == sorted(seen, reverse=True)
    for batch in batches:
        cost = batch.lengths[0] * len(batch.rows) if padded else batch.lengths.sum()
        assert cost <= budget or len(batch.rows) == 1
        expected = [counts.tokens[counts.offsets[row - 100] : counts.offsets[row - 99]] for row in batch.rows]
        np.testing.assert_array_equal(batch.tokens, np.concatenate(expected))


def test_prefetch_keeps_order_and_works_ahead() -> None:
    assert list(prefetch(range(100))) == list(range(100))
    made: list[int] = []
    items = prefetch((made.append(i) or i for i in range(10)), depth=2)
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 4 == len(made), "one taken, two waiting, one in the hand of the thread"


def test_prefetch_raises_where_the_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        msg = "broken"
        raise OSError(msg)

    found = prefetch(items())
    assert next(found) == 1
    with pytest.raises(OSError, match="broken"):
        next(found)


def test_prefetch_ends_its_thread_when_the_consumer_stops() -> None:
    items = prefetch(iter(int, 1))
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert "scfm-prefetch" not in {thread.name for thread in threading.enumerate()}
