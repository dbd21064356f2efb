"""Ranks, compiled."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
from __future__ import annotations

from scfm._compat import kernel

__all__ = ["fill_ranks"]


@kernel()
def fill_ranks(values, order, ranks):
    """Write ranks from 0, averaged over ties, of each row of ``values``, which ``order`` sorts."""
    n_rows, n = values.shape
    for row in range(n_rows):
        start = 0
        while start < n:
            value, stop = values[row, order[row, start]], start + 1
            while stop < n and values[row, order[row, stop]] == value:
                stop += 1
            for k in range(start, stop):
                ranks[row, order[row, k]] = 0.5 * (start + stop - 1)
            start = stop
