"""Matrices that are in memory already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.read._rows import MatrixRows, Parts, checked, join, pick, sparsify

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm.read._rows import Rows

__all__ = ["DenseMemory", "SparseMemory"]


class SparseMemory(MatrixRows):
    """A scipy sparse matrix or array.

    CSR is read where it lies: blocks of neighbouring rows share its memory. Any other format is converted to CSR once,
    when the first block is read, which takes as much memory again as the matrix has; the caller's object stays as it
    is.

    Parameters
    ----------
    matrix
        The matrix, of any scipy sparse format.
    where
        Its name in messages.
    """

    def __init__(self, matrix: Any, where: str) -> None:
        super().__init__(matrix.shape, matrix.dtype, where)
        self._source = matrix
        self._csr: Parts | None = None

    def span(self, start: int, stop: int) -> Parts:
        """Read stored rows ``start`` to ``stop``."""
        parts = self._converted()
        low, high = int(parts.indptr[start]), int(parts.indptr[stop])
        indptr = parts.indptr[start : stop + 1] - low
        return checked(indptr, parts.indices[low:high], parts.data[low:high], self)

    def stored(self, rows: Rows) -> NDArray[np.int64]:
        """Count the stored values of each row."""
        indptr, wanted = self._converted().indptr, np.asarray(rows, dtype=np.int64)
        return indptr[wanted + 1] - indptr[wanted]

    def peek(self, rows: range) -> Parts:
        """Read a few rows without converting the whole matrix."""
        if self._csr is not None or self._source.format != "csc":
            return self.take(rows)
        few = self._source[rows.start : rows.stop].tocsr()
        return checked(few.indptr.astype(np.int64), few.indices, few.data, self)

    def _converted(self) -> Parts:
        if self._csr is None:
            csr = self._source if self._source.format == "csr" else self._source.tocsr()
            self._csr = Parts(csr.indptr.astype(np.int64, copy=False), csr.indices, csr.data)
        return self._csr

    def _gather(self, rows: NDArray[np.int64]) -> Parts:
        found = pick(self._converted(), rows)
        return checked(found.indptr, found.indices, found.data, self)


class DenseMemory(MatrixRows):
    """A numpy array; each block is made sparse on its own.

    Parameters
    ----------
    matrix
        The array, shape ``(n_cells, n_genes)``.
    where
        Its name in messages.
    """

    def __init__(self, matrix: NDArray[np.generic], where: str) -> None:
        super().__init__(matrix.shape, matrix.dtype, where)
        self._source = np.asarray(matrix)

    def span(self, start: int, stop: int) -> Parts:
        """Read stored rows ``start`` to ``stop``."""
        edges = range(start, max(stop, start + 1), self.step)
        return join([sparsify(self._source[edge : min(edge + self.step, stop)]) for edge in edges])

    def _gather(self, rows: NDArray[np.int64]) -> Parts:
        return join([sparsify(self._source[rows[edge : edge + self.step]]) for edge in range(0, len(rows), self.step)])
