"""An AnnData object, or a modality of a MuData object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scfm._compat import frame_of, layer_names, view_of
from scfm.read._container import Container, Element, Stored
from scfm.read.backed import stored_matrix
from scfm.read.memory import DenseMemory, SparseMemory

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from scfm.read._rows import MatrixRows, Rows

__all__ = ["AnnDataContainer", "matrix_of"]

GPU = {
    "cupy": "rapids_singlecell.get.anndata_to_CPU(adata)",
    "cupyx": "rapids_singlecell.get.anndata_to_CPU(adata)",
    "jax": "numpy.asarray(matrix)",
    "jaxlib": "numpy.asarray(matrix)",
    "torch": "matrix.cpu().numpy()",
}


class AnnDataContainer(Container):
    """An AnnData: in memory, a view, backed, or a view of a backed one."""

    def __init__(self, adata: AnnData, label: str) -> None:
        self.label = f"{label} backed by {adata.filename}" if adata.isbacked else label
        self._adata = adata
        self._parent, self._rows, self._cols = view_of(adata)
        self.layers = layer_names(adata)
        self.n_obs = adata.n_obs
        self.has_raw = adata.raw is not None
        if adata.isbacked and not adata.file.is_open:
            adata.file.open()
        self.has_x = "X" in adata.file if adata.isbacked else self._parent.X is not None

    @property
    def obs(self) -> pd.DataFrame:
        # a new frame around the same columns: the caller's object neither gains columns nor turns from view to copy
        return frame_of(self._adata.obs)

    @property
    def obs_names(self) -> pd.Index:
        return self._adata.obs_names

    @property
    def var(self) -> pd.DataFrame:
        return frame_of(self._adata.var)

    def stored(self, element: Element) -> Stored:
        """Find one of the matrices, behind views instead of in a copy of them."""
        found, rows, cols = self._seen(element)
        var = frame_of(self._adata.raw.var) if element.kind == "raw" else self.var
        return Stored(matrix_of(found, element.name, self.label), rows, cols, var)

    def _seen(self, element: Element) -> tuple[Any, Rows, NDArray[np.int64] | None]:
        """Find the matrix, and which of its rows and columns are seen."""
        adata, everything = self._adata, range(self.n_obs)
        if element.kind == "raw":
            if adata.isbacked:
                return adata.file["raw/X" if "raw/X" in adata.file else "raw.X"], self._rows, None
            return adata.raw.X, everything, None  # anndata has subset it already when it made the view
        if element.kind == "X":
            stored = adata.file["X"] if adata.isbacked else self._parent.X
        else:
            stored = self._parent.layers[element.layer]
        if adata.is_view and sparse.issparse(stored) and stored.format != "csr":
            # it will be converted as a whole, so let it be the part that is seen
            return adata.X if element.kind == "X" else adata.layers[element.layer], everything, None
        return stored, self._rows, self._cols


def matrix_of(stored: Any, name: str, label: str) -> MatrixRows:
    """Make a reader of a matrix that an AnnData holds.

    Raises
    ------
    TypeError
        If it is on a GPU, or nothing that is known.
    """
    where, package = f"{name} of {label}", type(stored).__module__.partition(".")[0]
    if sparse.issparse(stored):
        return SparseMemory(stored, where)
    if isinstance(stored, np.ndarray) and not isinstance(stored, np.ma.MaskedArray) and stored.ndim == 2:
        return DenseMemory(stored, where)
    if package in ("h5py", "zarr"):
        return stored_matrix(stored, name)
    if hasattr(stored, "group"):  # CSRDataset, CSCDataset
        return stored_matrix(stored.group, name)
    if package in GPU:
        msg = f"{where} is a {package} array. Counts are read on the CPU: bring it there first by {GPU[package]}."
        raise TypeError(msg)
    if package == "dask":
        from scfm.read.lazy import DaskRows

        return DaskRows(stored, where)
    shape = f" of {stored.ndim} dimensions" if hasattr(stored, "ndim") else ""
    msg = f"{where} is a {type(stored).__name__}{shape}; a 2-D numpy array or a scipy sparse matrix is needed."
    raise TypeError(msg)
