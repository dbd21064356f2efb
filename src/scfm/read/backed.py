"""Matrices that stay in an HDF5 file or a zarr store.

Both libraries give groups and arrays the same mapping interface, so one reader serves both. What is known about the
layout of a matrix in a file is in this module.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.read._door import file_of, is_group
from scfm.read._rows import MatrixRows, Parts, checked, join, sparsify
from scfm.read.arrays import Pointers, fast_codecs, lost, stored_array
from scfm.read.kernels import scan_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm.read._rows import Rows

__all__ = ["DenseStored", "SparseStored", "stored_matrix"]

CACHED = 2**18
"""Values that are looked at while they are still in the cache (2 MiB)."""


def stored_matrix(element: Any, name: str) -> MatrixRows:
    """Make a reader of a matrix in a file.

    Parameters
    ----------
    element
        The h5py or zarr group of a sparse matrix, or the array of a dense one.
    name
        ``"X"``, ``"raw.X"`` or ``"layers['counts']"``, for messages.

    Raises
    ------
    ValueError
        If the matrix is stored by columns, or is no matrix.
    """
    where = f"{name} of {file_of(element)}"
    attrs = element.attrs
    # files written before anndata 0.7 mark a sparse matrix by h5sparse_format
    encoding = _text(attrs.get("encoding-type", attrs.get("h5sparse_format", "")))
    if not is_group(element):
        if len(element.shape) != 2:
            msg = f"{where} is an array of {len(element.shape)} dimensions; a matrix of cells by genes is needed."
            raise ValueError(msg)
        return DenseStored(element, where)
    if encoding in ("csr_matrix", "csr"):
        shape = attrs.get("shape", attrs.get("h5sparse_shape"))
        return SparseStored(element, (int(shape[0]), int(shape[1])), where)
    if encoding in ("csc_matrix", "csc"):
        msg = (
            f"{where} is stored by columns (CSC), and cells cannot be read from it without loading all of it. "
            f"Store it by rows once:\n\n{_conversion(element, name)}\n\nor pass the AnnData read into memory."
        )
        raise ValueError(msg)
    msg = f"{where} is stored as {encoding or 'an unknown group'!r}; a dense array or a CSR matrix is needed."
    raise ValueError(msg)


def _conversion(element: Any, name: str) -> str:
    """Lines of Python that read the file, store one matrix by rows, and write a new file."""
    path, inside = PurePath(file_of(element)), element.name.strip("/").split("/")
    old, new = str(path), str(path.with_stem(f"{path.stem}_csr"))
    kind, modality = "h5ad" if hasattr(element, "file") else "zarr", inside[1] if inside[0] == "mod" else None
    read, write = ["import anndata as ad", f"adata = ad.read_{kind}({old!r})"], f"adata.write_{kind}({new!r})"
    if modality is not None and kind == "h5ad":
        read = ["import mudata as md", f"mdata = md.read_h5mu({old!r})", f"adata = mdata[{modality!r}]"]
        write = f"mdata.write_h5mu({new!r})"
    elif modality is not None:  # mudata reads no raw from zarr, so the modality is taken out
        group = f"zarr.open_group({old!r}, mode='r')['mod/{modality}']"
        read = ["import anndata as ad", "import zarr", f"adata = ad.io.read_elem({group})"]
    change = [f"adata.{name} = adata.{name}.tocsr()"]
    if name == "raw.X":
        change = ["raw = adata.raw.to_adata()", "raw.X = raw.X.tocsr()", "adata.raw = raw"]
    return "\n".join(f"    {line}" for line in [*read, *change, write])


class SparseStored(MatrixRows):
    """A CSR matrix in a file; of its row borders a window is held in memory.

    Parameters
    ----------
    group
        The h5py or zarr group with ``indptr``, ``indices`` and ``data``.
    shape
        Cells and genes.
    where
        Its name in messages.
    """

    def __init__(self, group: Any, shape: tuple[int, int], where: str) -> None:
        with fast_codecs(group) as fast:
            self._indices, self._data = stored_array(fast["indices"]), stored_array(fast["data"])
        super().__init__(shape, self._data.dtype, where)
        size = min(self._indices.size, self._data.size)
        self._pointers = Pointers(group["indptr"], self.shape[0], size, where)
        data = self._data.dtype
        self._scannable = data.isnative and (data.kind != "f" or data.itemsize in (4, 8))

    def span(self, start: int, stop: int) -> Parts:
        """Read stored rows ``start`` to ``stop``: one contiguous stretch of each array."""
        indptr = self._pointers.between(start, stop)
        low, n_values = int(indptr[0]), int(indptr[-1] - indptr[0])
        indptr = indptr - low
        indices, data = np.empty(n_values, self._indices.dtype), np.empty(n_values, self._data.dtype)
        sums, fine = np.empty(stop - start), self._scannable
        for first, last in self._pieces(indptr):
            part = slice(int(indptr[first]), int(indptr[last]))
            self._indices.fill(indices[part], low + part.start)
            self._data.fill(data[part], low + part.start)
            if fine:
                borders = indptr[first : last + 1] - part.start
                fine = scan_rows(borders, indices[part], data[part], self.shape[1], sums[first:last])
        if self._data.lacks(data, low):
            raise lost(self.where, "data")
        if not fine and self._indices.lacks(indices, low):  # of cells with one gene each, the first, it may be true
            raise lost(self.where, "indices")
        if not fine:
            return checked(indptr, indices, data, self)
        return Parts(indptr, indices.astype(np.int32, copy=False), data, sums)

    def stored(self, rows: Rows) -> NDArray[np.int64]:
        """Count the stored values of each row."""
        if isinstance(rows, range) and rows.step == 1 and len(rows):
            return np.diff(self._pointers.between(rows.start, rows.stop))
        counts = [int(np.diff(self._pointers.between(row, row + 1))[0]) for row in np.asarray(rows).tolist()]
        return np.array(counts, np.int64)

    def _pieces(self, indptr: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Ranges of rows whose values fit into the cache of a core, so that they are there still when they are looked at."""
        n_rows = len(indptr) - 1
        if not (self._indices.piecewise and self._data.piecewise):
            return [(0, n_rows)]
        step = max(1, CACHED * n_rows // max(1, int(indptr[-1])))
        return [(first, min(first + step, n_rows)) for first in range(0, n_rows, step)]


class DenseStored(MatrixRows):
    """A dense array in a file, read by whole chunks of cells.

    Parameters
    ----------
    array
        The h5py or zarr array, shape ``(n_cells, n_genes)``.
    where
        Its name in messages.
    by_columns
        The array has the shape ``(n_genes, n_cells)``.
    """

    def __init__(self, array: Any, where: str, *, by_columns: bool = False) -> None:
        super().__init__(array.shape[::-1] if by_columns else array.shape, np.dtype(array.dtype), where)
        self._array, self._axis = stored_array(array), int(by_columns)
        # a chunk is decompressed once if pieces end where chunks end; one huge chunk must not become the piece
        chunk = array.chunks[self._axis] if array.chunks else 1
        if chunk <= 4 * self.step:
            self.step = chunk * max(1, self.step // chunk)

    def span(self, start: int, stop: int) -> Parts:
        """Read stored rows ``start`` to ``stop``."""
        pieces: list[Parts] = []
        row = start
        while row < stop or not pieces:
            end = min((row // self.step + 1) * self.step, stop)
            part = np.empty((end - row, self.shape[1])[:: -1 if self._axis else 1], self._array.dtype)
            self._array.fill(part, row, self._axis)
            pieces.append(sparsify(part.T if self._axis else part))
            row = end
        return join(pieces)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
