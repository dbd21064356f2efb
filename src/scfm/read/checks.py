"""A cheap look at a few cells: are these counts?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm._types import CountBlock
    from scfm.read.counts import CountSource

__all__ = ["CountCheck", "check_counts", "spread"]

SPAN_ROWS = 256


@dataclass(frozen=True, slots=True)
class CountCheck:
    """What a sample of a matrix holds."""

    integers: bool
    """Whether all values are whole numbers, not negative, and finite."""
    text: str
    """What the values look like, to be read after "holds"."""
    bad: tuple[int, int, float] | None = None
    """Cell, gene and value of the first entry that is negative, infinite or NaN."""
    only_bad: bool = False
    """Whether all other values of the sample are counts."""
    all_zero: bool = False
    """Whether all values are 0, as in a matrix that another program left empty."""

    @property
    def kind(self) -> str:
        """The text without figures, so that a message is the same for many files."""
        return self.text.partition(" (")[0]


def spread(n_obs: int, rows: int = SPAN_ROWS) -> list[tuple[int, int]]:
    """Up to three stretches of at most ``rows`` cells: the first, the middle and the last ones, without overlap."""
    if n_obs <= 3 * rows:
        return [(start, min(start + rows, n_obs)) for start in range(0, n_obs, rows)]
    middle = (n_obs - rows) // 2
    return [(0, rows), (middle, middle + rows), (n_obs - rows, n_obs)]


def check_counts(source: CountSource) -> CountCheck:
    """Look at up to 768 cells of a source.

    Parameters
    ----------
    source
        The source; its values are not kept.

    Returns
    -------
    What its values look like.
    """
    largest, n_values, n_fractions, bad = 0.0, 0, 0, None
    sums: list[NDArray[np.float64]] = [np.zeros(0)]
    for start, stop in spread(source.n_obs):
        block = source.peek(start, stop)
        data: NDArray[Any] = block.data
        possible = np.isfinite(data) & (data >= 0)
        bad = bad or _first_bad(block, possible)
        values = data[possible & (data > 0)]
        if len(values):
            largest = max(largest, float(values.max()))
            n_values += len(values)
            n_fractions += int(np.count_nonzero(values != np.rint(values)))
        sums.append(block.totals)
    if bad is not None:
        return CountCheck(False, f"the value {bad[2]:g}", bad, only_bad=not n_fractions and largest > 0)
    if not n_fractions:
        return CountCheck(True, "integers" if largest else "only zeros", all_zero=not largest)
    totals = np.concatenate(sums)
    totals = totals[totals > 0]
    if len(totals) > 1 and np.ptp(totals) <= 1e-3 * totals.mean():
        return CountCheck(False, f"values normalised to {totals.mean():.6g} in each cell")
    if n_fractions < n_values / 2:
        return CountCheck(False, f"mostly whole numbers ({n_fractions / n_values:.0%} of the values have fractions)")
    if largest < 20:
        return CountCheck(False, f"log-transformed values (the largest of the sample is {largest:.3g})")
    return CountCheck(False, f"values with fractions, such as normalised or corrected ones (up to {largest:.6g})")


def _first_bad(block: CountBlock, possible: NDArray[np.bool_]) -> tuple[int, int, float] | None:
    """Cell, gene and value of the first entry that is not possible."""
    if possible.all():
        return None
    at = int(np.argmin(possible))
    row = int(np.searchsorted(block.indptr, at, side="right")) - 1
    return block.row0 + row, int(block.indices[at]), float(block.data[at])
