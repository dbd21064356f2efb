"""What perturbations do to the shift towards states of random cells: a null for the shift towards the goal."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RandomShifts"]


class RandomShifts:
    """Mean shift towards each of some states over the cells in which a gene was changed.

    Shifts are linear in the state, so they are summed as they come, and nothing of a single cell is kept.

    Parameters
    ----------
    tags
        Tags of the copies, sorted.
    states
        Vectors of the states, shape ``(n_states, n_features)``.
    """

    def __init__(self, tags: NDArray[np.int64], states: NDArray[np.float64]) -> None:
        self._tags = tags
        self._states = states / np.linalg.norm(states, axis=1, keepdims=True)
        self._sums = np.zeros((len(tags), len(states)))
        self._counts = np.zeros(len(tags), np.int64)
        self._lock = Lock()  # each device has a thread

    def __call__(self, tags: list[int], moves: NDArray[np.float64]) -> None:
        """Add by how much the unit vectors of the cells of some copies have moved, shape ``(n_copies, n_features)``."""
        finite = np.isfinite(moves).all(axis=1)
        at = np.searchsorted(self._tags, tags)[finite]
        with self._lock:
            np.add.at(self._sums, at, moves[finite] @ self._states.T)
            np.add.at(self._counts, at, 1)

    def table(self, names: pd.Series[Any]) -> pd.DataFrame:
        """Means, float32: a row for each name (by tag) of what was changed in any cell, a column for each state."""
        seen = np.flatnonzero(self._counts)
        means = (self._sums[seen] / self._counts[seen, None]).astype(np.float32)
        return pd.DataFrame(means, names.reindex(self._tags[seen]).to_numpy(), [str(i) for i in range(means.shape[1])])
