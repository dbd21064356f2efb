"""Which kind of container an object or a file is."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from scfm._compat import is_mudata
from scfm._lock import NO_LOCKS
from scfm._paths import check_regular, settle
from scfm._text import masked
from scfm.read._anndata import AnnDataContainer
from scfm.read._door import inside, open_store
from scfm.read._h5ad import FileContainer
from scfm.read._loom import LoomContainer, is_loom
from scfm.read._mtx import MtxContainer, mtx_files
from scfm.read._tenx import TenxContainer, tenx_groups
from scfm.read.errors import reading
from scfm.read.paths import is_url
from scfm.read.remote import open_url

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scfm.read._container import Container

__all__ = ["is_anndata_file", "open_container"]

ACCEPTED = (
    "an AnnData, a MuData with modality=, or the path of a .h5ad, .h5mu, .zarr or .loom file, of a .h5 file or "
    "matrix.mtx folder of 10x, or the address of a .zarr store"
)
TEXT = (".csv", ".tsv", ".txt", ".tab")
UNPACK = {b"\x1f\x8b": "gunzip", b"PK": "unzip"}
"""What compressed files begin with, and the program that unpacks them."""


def open_container(data: Any, modality: str | None) -> Container:
    """Find out what ``data`` is and make a container of it.

    Parameters
    ----------
    data
        See :func:`scfm.read.open_counts`.
    modality
        Which AnnData of a MuData, or which genome of a 10x file with several matrices.

    Raises
    ------
    TypeError
        If ``data`` is nothing that can be read.
    FileNotFoundError
        If it is a path to nothing, or a table of a 10x folder is missing.
    ConnectionError
        If it is an address that does not answer.
    ValueError
        If ``modality`` is missing, unknown, or out of place, or the file is damaged or of another kind.
    """
    if is_url(data) or isinstance(data, str | PathLike):
        with reading(str(data)):
            found = _found(open_url(data), masked(data), modality) if is_url(data) else _open_path(Path(data), modality)
        found.path = str(data)
        return found
    if is_mudata(data):
        inner = data.mod[_known(modality, data.mod, "MuData")]
        _check_flat("MuData", modality, inner.mod if is_mudata(inner) else ())
        return AnnDataContainer(inner, f"MuData[{modality!r}]")
    if not isinstance(data, AnnData):
        wrap = "; wrap a matrix as anndata.AnnData(X=..., obs=..., var=...)" if hasattr(data, "shape") else ""
        msg = f"Cannot read counts from {type(data).__module__}.{type(data).__name__}. Accepted: {ACCEPTED}{wrap}."
        raise TypeError(msg)
    if modality is not None:
        raise _needless(modality, "an AnnData")
    return AnnDataContainer(data, "AnnData")


def is_anndata_file(path: Path) -> bool:
    """Whether a file is that of an AnnData or MuData, to which results can be added."""
    if path.is_dir():
        return _is_zarr(path)
    import h5py

    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with _open_h5(path) as file:
        return "mod" in file or "obs" in file


def _open_path(path: Path, modality: str | None) -> Container:
    if not path.exists():
        settle(path.parent)
    if not path.exists():
        msg = f"There is no file {str(path)!r}. Accepted: {ACCEPTED}."
        raise FileNotFoundError(msg)
    check_regular(path)
    if path.is_dir() and _is_zarr(path):
        return _found(open_store(path), str(path), modality)
    matrices = mtx_files(path)
    if matrices:
        if len(matrices) > 1:
            msg = f"{path} holds several matrices: {', '.join(file.name for file in matrices)}. Pass the path of one."
            raise ValueError(msg)
        if modality is not None:
            raise _needless(modality, str(path))
        return MtxContainer(matrices[0])
    if path.is_dir():
        msg = f"{str(path)!r} is a folder with neither a zarr store nor a matrix.mtx. Accepted: {ACCEPTED}."
        raise ValueError(msg)
    file = _open_h5(path)
    try:
        found = _found(file, str(path), modality)
    except BaseException:
        file.close()
        raise
    found.file = file
    return found


def _found(root: Any, label: str, modality: str | None) -> Container:
    """The container in a file."""
    if "mod" in root:
        name = _known(modality, inside(root, "mod"), label)
        group = inside(root, f"mod/{name}")
        _check_flat(label, name, group.get("mod", ()))
        return FileContainer(group, f"{label}/mod/{name}")
    is_anndata = "obs" in root and "var" in root
    matrices = [] if is_anndata else tenx_groups(root)
    if len(matrices) > 1:
        name = _known(modality, matrices, label, "genomes")
        return TenxContainer(inside(root, name), f"{label}/{name}")
    if modality is not None:
        raise _needless(modality, label)
    if is_anndata:
        return FileContainer(root, label)
    if matrices:
        return TenxContainer(inside(root, matrices[0]), label)
    if is_loom(root):
        return LoomContainer(root, label)
    msg = f"{label} holds no cells × genes: it has no obs and var, but {sorted(root.keys())}. Accepted: {ACCEPTED}."
    raise ValueError(msg)


def _open_h5(path: Path) -> Any:
    import h5py

    if not h5py.is_hdf5(path):
        if path.name.removesuffix(".gz").endswith(TEXT):
            msg = (
                f"{path} is a table of text, which cannot be read by cells. Load it once by adata = "
                f"anndata.io.read_csv({str(path)!r}), take adata.T if its rows are genes, and pass adata."
            )
            raise ValueError(msg)
        with path.open("rb") as file:
            program = UNPACK.get(file.read(2))
        unpack = f" It is compressed: unpack it with {program} first." if program else ""
        msg = f"{str(path)!r} is no HDF5 file.{unpack} Accepted: {ACCEPTED}."
        raise ValueError(msg)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        why = "It may be damaged, or another program may be writing to it"
        if error.errno in NO_LOCKS:
            why = "If its file system has no locks, set HDF5_USE_FILE_LOCKING=FALSE in the environment"
        msg = f"{str(path)!r} cannot be opened: {error}. {why}."
        raise OSError(msg) from error


def _is_zarr(path: Path) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zgroup"))


def _known(modality: str | None, names: Iterable[str], label: str, kind: str = "modalities") -> str:
    if modality is None or modality not in names:
        found = "needs modality=" if modality is None else f"has no modality {modality!r}"
        msg = f"{label} {found}. Its {kind}: {', '.join(map(repr, names))}."
        raise ValueError(msg)
    return modality


def _check_flat(label: str, modality: str | None, inner: Iterable[str]) -> None:
    """Refuse a modality that has modalities itself."""
    found = ", ".join(map(repr, inner))
    if found:
        msg = (
            f"Modality {modality!r} of {label} is a MuData itself, with the modalities {found}. Pass that MuData, "
            f"mdata.mod[{modality!r}], and one of its modalities."
        )
        raise ValueError(msg)


def _needless(modality: str, label: str) -> ValueError:
    msg = f"modality={modality!r} is for a MuData, and {label} holds a single AnnData: leave modality out."
    return ValueError(msg)
