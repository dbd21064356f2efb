"""Scores of genes in cells, collected for a sparse matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

__all__ = ["ScoreRows"]


class ScoreRows:
    """Collects scores for a CSR matrix.

    Parameters
    ----------
    n_columns
        Number of genes.
    """

    def __init__(self, n_columns: int) -> None:
        self._n_columns = n_columns
        self.parts: list[tuple[NDArray[Any], ...]] = []
        """Cell, gene and score of each entry, block by block: int64, int32 and float32."""

    def append(self, cells: NDArray[np.int64], genes: NDArray[np.int64], states: NDArray[np.float32]) -> None:
        """Store the scores of one block, sorted by cell and gene."""
        self.parts.append((cells, genes.astype(np.int32), states[:, 0]))

    def since(self, part: int) -> tuple[NDArray[Any], ...]:
        """Cell, gene and score of each entry from a part on."""
        nothing = (np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
        return tuple(map(np.concatenate, zip(*(self.parts[part:] or [nothing]), strict=True)))

    def matrix(self, n_obs: int) -> sparse.csr_matrix:
        """All scores, shape ``(n_obs, n_columns)``."""
        from scipy import sparse

        cells, genes, scores = self.since(0)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=n_obs))])
        return sparse.csr_matrix((scores, genes, indptr), shape=(n_obs, self._n_columns))
