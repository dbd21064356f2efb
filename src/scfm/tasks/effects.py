"""The effects of perturbations, as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.run import RunStats

__all__ = ["WHOLE", "Effects"]

WHOLE = -1
"""Tag of a cell as it is."""


class Effects:
    """Collects effects, with the cell and the tag of each copy.

    Parameters
    ----------
    n_effects
        Effects of a copy.
    n_features
        Features of the embeddings that are kept beside them; 0 for none.
    """

    def __init__(self, n_effects: int, n_features: int = 0) -> None:
        self.n_effects, self.n_features = n_effects, n_features
        self.clear()

    def clear(self) -> None:
        """Forget what was collected."""
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Keep the effects of the copies of a batch; with embeddings, also the cells as they are."""
        assert batch.tags is not None
        kept = batch.tags >= (WHOLE if self.n_features else 0)
        if kept.any():
            self._parts.append((batch.rows[kept], batch.tags[kept], output.numpy()[kept].astype(np.float32)))

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Nothing is held back."""

    def table(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Cells, tags and effects of all copies, shape ``(n_copies, n_effects)``, sorted by cell and tag."""
        rows, tags, values = self._all()
        copies = tags >= 0
        return rows[copies], tags[copies], values[copies, : self.n_effects]

    def embeddings(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Cells, tags (−1 for cells as they are) and embeddings, shape ``(n_sequences, n_features)``, in the same order."""
        rows, tags, values = self._all()
        return rows, tags, values[:, self.n_effects :]

    def _all(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        width = self.n_effects + self.n_features
        nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, width), np.float32))
        rows, tags, values = map(np.concatenate, zip(*(self._parts or [nothing]), strict=True))
        order = np.lexsort((tags, rows))
        return rows[order], tags[order], values[order]
