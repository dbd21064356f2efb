"""Where matrices are found: in an AnnData, in a modality of a MuData, or in a file that is never loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem
from scipy import sparse

from scfm._compat import frame_of, is_mudata, layer_names, view_of
from scfm._package import pip_install
from scfm.read.backed import is_group, stored_matrix
from scfm.read.memory import DenseMemory, SparseMemory
from scfm.read.paths import is_url

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm.read._rows import MatrixRows, Rows

__all__ = ["Container", "Element", "Stored", "matrix_of", "open_container"]

ACCEPTED = "an AnnData, a MuData with modality=, or the path of a .h5ad file, a .h5mu file or a .zarr store, or the address of a .zarr store"
GPU = {
    "cupy": "rapids_singlecell.get.anndata_to_CPU(adata)",
    "cupyx": "rapids_singlecell.get.anndata_to_CPU(adata)",
    "jax": "numpy.asarray(matrix)",
    "jaxlib": "numpy.asarray(matrix)",
    "torch": "matrix.cpu().numpy()",
}


@dataclass(frozen=True, slots=True)
class Element:
    """One matrix of a container."""

    kind: Literal["X", "raw", "layer"]
    layer: str = ""

    @property
    def name(self) -> str:
        """How the matrix is written in Python."""
        return {"X": "X", "raw": "raw.X", "layer": f"layers[{self.layer!r}]"}[self.kind]

    @property
    def argument(self) -> str:
        """The argument of ``open_counts`` that chooses it."""
        return {"X": "use_raw=False", "raw": "use_raw=True", "layer": f"layer={self.layer!r}"}[self.kind]


class Stored(NamedTuple):
    """A matrix where it lies, and which part of it belongs to the container."""

    matrix: MatrixRows
    """Reader of the matrix."""
    rows: Rows
    """Stored row of each cell."""
    cols: NDArray[np.int64] | None
    """Stored column of each gene; ``None``: all columns in order."""
    var: pd.DataFrame
    """Annotation of the genes."""


class Container(ABC):
    """Something with an X, perhaps a raw, layers, obs and var."""

    label: str
    layers: list[str]
    has_x: bool
    has_raw: bool
    n_obs: int
    _file: Any = None

    @property
    @abstractmethod
    def obs(self) -> pd.DataFrame:
        """Annotation of the cells."""

    @property
    @abstractmethod
    def obs_names(self) -> pd.Index:
        """Names of the cells."""

    @abstractmethod
    def stored(self, element: Element) -> Stored:
        """Find one of the matrices."""

    def columns(self) -> list[str]:
        """Names of the columns of ``obs``."""
        return list(self.obs.columns)

    def column(self, name: str) -> pd.Series:
        """One column of ``obs``."""
        return self.obs[name]

    def names(self, start: int, stop: int) -> NDArray[Any]:
        """Names of some cells."""
        return self.obs_names[start:stop].to_numpy(dtype=object)

    def elements(self) -> list[Element]:
        """All matrices there are."""
        found = [Element("X")] * self.has_x + [Element("layer", name) for name in self.layers]
        return found + [Element("raw")] * self.has_raw

    def close(self) -> None:
        """Close what was opened for this container, and nothing else."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


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

    def stored(self, element: Element) -> Stored:
        """Find one of the matrices, behind views instead of in a copy of them."""
        found, rows, cols = self._seen(element)
        var = self._adata.raw.var if element.kind == "raw" else self._adata.var
        return Stored(matrix_of(found, element.name, self.label), rows, cols, frame_of(var))

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


class FileContainer(Container):
    """An AnnData in a group of an HDF5 file or zarr store, of which only the parts that are asked for are read."""

    def __init__(self, root: Any, label: str, file: Any) -> None:
        self.label = label
        self._root = root
        self._file = file
        if "obs" not in root or "var" not in root:
            msg = f"{label} holds no AnnData: it has no obs and var, but {sorted(root.keys())}. Accepted: {ACCEPTED}."
            raise ValueError(msg)
        self.layers = list(root["layers"].keys()) if "layers" in root else []
        self.has_x = "X" in root and root["X"].attrs.get("encoding-type") != "null"
        self.has_raw = "raw/X" in root or "raw.X" in root
        obs = root["obs"]
        names = obs[obs.attrs["_index"]] if is_group(obs) else obs
        self.n_obs = len(self.obs_names) if is_group(names) else names.shape[0]

    @cached_property
    def obs(self) -> pd.DataFrame:
        return _frame(self._root["obs"])

    @cached_property
    def obs_names(self) -> pd.Index:
        obs = self._root["obs"]
        if not is_group(obs):
            return self.obs.index
        name = obs.attrs["_index"]
        return pd.Index(read_elem(obs[name]), name=None if name == "_index" else name)

    def columns(self) -> list[str]:
        """Names of the columns of ``obs``."""
        obs = self._root["obs"]
        return [str(name) for name in obs.attrs["column-order"]] if is_group(obs) else super().columns()

    def column(self, name: str) -> pd.Series:
        """One column of ``obs``, without the names of the cells and the other columns."""
        if name not in self.columns():
            raise KeyError(name)
        obs = self._root["obs"]
        return pd.Series(read_elem(obs[name])) if is_group(obs) else super().column(name)

    def names(self, start: int, stop: int) -> NDArray[Any]:
        """Names of some cells."""
        obs = self._root["obs"]
        stored = obs[obs.attrs["_index"]] if is_group(obs) else obs
        if is_group(stored) or not is_group(obs):
            return super().names(start, stop)
        found = (stored.asstr() if hasattr(stored, "asstr") and stored.dtype == object else stored)[start:stop]
        return (np.char.decode(found) if found.dtype.kind == "S" else np.asarray(found)).astype(object)

    def stored(self, element: Element) -> Stored:
        """Find one of the matrices."""
        raw = "raw/" if "raw/X" in self._root else "raw."
        path = {"X": "X", "raw": f"{raw}X", "layer": f"layers/{element.layer}"}[element.kind]
        matrix = stored_matrix(self._root[path], element.name)
        var = _frame(self._root[f"{raw}var" if element.kind == "raw" else "var"])
        return Stored(matrix, range(matrix.shape[0]), None, var)


def open_container(data: Any, modality: str | None) -> Container:
    """Find out what ``data`` is and make a container of it.

    Parameters
    ----------
    data
        See :func:`scfm.read.open_counts`.
    modality
        Which AnnData of a MuData.

    Raises
    ------
    TypeError
        If ``data`` is nothing that can be read.
    FileNotFoundError
        If it is a path to nothing.
    ValueError
        If ``modality`` is missing, unknown, or out of place, or the file is of another kind.
    """
    if is_url(data):
        return _opened(None, _open_url(data), data, modality)
    if isinstance(data, str | PathLike):
        return _open_path(Path(data), modality)
    if is_mudata(data):
        return AnnDataContainer(data.mod[_known(modality, list(data.mod), "MuData")], f"MuData[{modality!r}]")
    if not isinstance(data, AnnData):
        wrap = "; wrap a matrix as anndata.AnnData(X=..., obs=..., var=...)" if hasattr(data, "shape") else ""
        msg = f"Cannot read counts from {type(data).__module__}.{type(data).__name__}. Accepted: {ACCEPTED}{wrap}."
        raise TypeError(msg)
    if modality is not None:
        raise ValueError(_needless(modality, "an AnnData"))
    return AnnDataContainer(data, "AnnData")


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


def _open_path(path: Path, modality: str | None) -> Container:
    if not path.exists():
        msg = f"There is no file {str(path)!r}. Accepted: {ACCEPTED}."
        raise FileNotFoundError(msg)
    if path.is_dir():
        return _opened(None, _open_zarr(path), str(path), modality)
    file = _open_h5(path)
    return _opened(file, file, str(path), modality)


def _opened(file: Any, root: Any, label: str, modality: str | None) -> Container:
    try:
        if "mod" in root:
            name = _known(modality, list(root["mod"].keys()), label)
            return FileContainer(root["mod"][name], f"{label}/mod/{name}", file)
        if modality is not None:
            raise ValueError(_needless(modality, label))
        return FileContainer(root, label, file)
    except BaseException:
        if file is not None:
            file.close()
        raise


def _open_h5(path: Path) -> Any:
    import h5py

    if not h5py.is_hdf5(path):
        msg = f"{str(path)!r} is no HDF5 file. Accepted: {ACCEPTED}."
        raise ValueError(msg)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        msg = f"{str(path)!r} cannot be opened: {error}. It may be damaged, or another program may be writing to it."
        raise OSError(msg) from error


def _open_zarr(path: Path) -> Any:
    import zarr

    if not any((path / name).exists() for name in ("zarr.json", ".zgroup")):
        msg = f"{str(path)!r} is a directory but no zarr store. Accepted: {ACCEPTED}."
        raise ValueError(msg)
    # consolidated metadata does not know what was added after it was written
    return zarr.open_group(str(path), mode="r", use_consolidated=False)


def _open_url(url: str) -> Any:
    import zarr

    try:
        return zarr.open_group(url, mode="r")
    except ImportError as error:
        msg = f"{url} needs another package: {error}. For http, https and s3: {pip_install('remote')}."
        raise ImportError(msg) from error
    except (FileNotFoundError, ValueError, OSError) as error:
        msg = f"{url} cannot be opened as a zarr store: {error}. A file of another kind must be downloaded first."
        raise type(error)(msg) from error


def _known(modality: str | None, modalities: list[str], label: str) -> str:
    if modality is None or modality not in modalities:
        found = "needs modality=" if modality is None else f"has no modality {modality!r}"
        msg = f"{label} {found}. Its modalities: {', '.join(map(repr, modalities))}."
        raise ValueError(msg)
    return modality


def _needless(modality: str, label: str) -> str:
    return f"modality={modality!r} is for a MuData, and {label} holds a single AnnData: leave modality out."


def _frame(element: Any) -> pd.DataFrame:
    """Read a data frame; files written before anndata 0.7 store it as a structured array."""
    frame = read_elem(element)
    if not isinstance(frame, np.ndarray):
        return frame
    table = pd.DataFrame.from_records(frame, index=frame.dtype.names[0])
    table.index = pd.Index([name.decode() if isinstance(name, bytes) else str(name) for name in table.index])
    return table
