"""Checks of stored rows, compiled; the rules of :mod:`scfm.encode.rank_kernels` hold here, too."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
from __future__ import annotations

import numpy as np

from scfm._compat import kernel

__all__ = ["count_fractional", "scan_rows"]


@kernel()
def _ascends(columns):
    wrong = 0
    for k in range(1, len(columns)):
        wrong |= columns[k] <= columns[k - 1]
    return not wrong


# terms may be added in any order, which lets several be added at once; sums of counts are exact either way
@kernel(fastmath={"reassoc"})
def _sum(values):
    total = 0.0
    for k in range(len(values)):
        total += values[k]
    return total


@kernel()
def scan_rows(indptr, indices, data, n_cols, totals):
    """Whether in each row columns ascend and exist; the sum of each row goes to ``totals``, float64."""
    fine = True
    for row in range(len(indptr) - 1):
        low, high = indptr[row], indptr[row + 1]
        totals[row] = _sum(data[low:high])
        if low == high:
            continue
        columns = indices[low:high]
        if not _ascends(columns) or columns[0] < 0 or columns[-1] >= n_cols:
            fine = False
    return fine


@kernel()
def _has_fraction(values):
    found = 0
    for k in range(len(values)):
        found |= values[k] != np.floor(values[k])
    return found


@kernel()
def count_fractional(indptr, data):
    """Number of rows with a value that is not whole."""
    rows = 0
    for row in range(len(indptr) - 1):
        rows += _has_fraction(data[indptr[row] : indptr[row + 1]])
    return rows
