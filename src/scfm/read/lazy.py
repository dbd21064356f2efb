"""Matrices that are dask arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scfm.read._rows import MatrixRows, Parts, checked, cut, join, sparsify

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DaskRows"]


class DaskRows(MatrixRows):
    """A dask array, computed by whole chunks of rows, each of them once when rows are read in order.

    Parameters
    ----------
    array
        The array, of numpy or scipy sparse chunks, shape ``(n_cells, n_genes)``.
    where
        Its name in messages.

    Raises
    ------
    ValueError
        If the sizes of the chunks are not known.
    """

    def __init__(self, array: Any, where: str) -> None:
        if array.ndim != 2 or any(np.isnan(size) for sizes in array.chunks for size in sizes):
            msg = f"{where} is a dask array of shape {array.shape}; a matrix with chunks of known sizes is needed (compute_chunk_sizes())."
            raise ValueError(msg)
        super().__init__(array.shape, np.dtype(array.dtype), where)
        self._array = array
        self._borders: NDArray[np.int64] = np.concatenate([[0], np.cumsum(array.chunks[0])]).astype(np.int64)
        self.step = max(1, int(max(array.chunks[0], default=1)))
        self._kept: tuple[int, Parts] | None = None

    def span(self, start: int, stop: int) -> Parts:
        """Read stored rows ``start`` to ``stop``."""
        first = int(np.searchsorted(self._borders, start, side="right")) - 1
        last = int(np.searchsorted(self._borders, stop, side="left"))
        if stop <= start:
            return Parts(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, self._array.dtype))
        pieces = []
        for chunk in range(first, last):
            low, high = int(self._borders[chunk]), int(self._borders[chunk + 1])
            if high > low:
                pieces.append(cut(self._chunk(chunk), max(start, low) - low, min(stop, high) - low))
        return join(pieces)

    def _chunk(self, number: int) -> Parts:
        if self._kept is None or self._kept[0] != number:
            found = self._array[int(self._borders[number]) : int(self._borders[number + 1])].compute()
            self._kept = number, self._parts(found)
        return self._kept[1]

    def _parts(self, found: Any) -> Parts:
        if sparse.issparse(found):
            csr = found.tocsr()
            return checked(csr.indptr.astype(np.int64), csr.indices, csr.data, self)
        if isinstance(found, np.ndarray):
            return sparsify(found)
        kind = f"{type(found).__module__}.{type(found).__name__}"
        msg = f"{self.where} has chunks of the type {kind}; numpy arrays or scipy sparse matrices are needed."
        raise TypeError(msg)
