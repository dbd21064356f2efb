"""Add results to a copy of a file, without loading what else is in it."""

from __future__ import annotations

import shutil
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from scfm._keys import PARAMS
from scfm._paths import atomic, check_new
from scfm.read import open_container

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from scfm._keys import Keys
    from scfm.model import Embedding
    from scfm.run.store import EmbeddingStore, Shard

__all__ = [
    "check_output",
    "merge_store",
    "read_frame",
    "write_with_embedding",
    "write_with_fields",
    "write_with_scores",
]

PIECE = 2**16
"""Rows that are copied at a time."""
SUFFIXES = (".h5ad", ".h5mu", ".zarr")


def check_output(source: Path, out: Path, *, overwrite: bool) -> None:
    """Find out before the long work whether ``out`` can be written.

    Raises
    ------
    ValueError
        If the suffix is not one of AnnData or MuData files, or differs from that of ``source``.
    FileExistsError
        If ``out`` exists and is not to be overwritten.
    FileNotFoundError
        If ``source`` or the folder of ``out`` does not exist.
    """
    if not source.exists():
        msg = f"There is no file {source}."
        raise FileNotFoundError(msg)
    if source.suffix not in SUFFIXES or out.suffix != source.suffix:
        msg = f"Cannot make {out.name} of {source.name}: both must end in the same of {', '.join(SUFFIXES)}."
        raise ValueError(msg)
    check_new(out, overwrite=overwrite, hint="pass --overwrite")


def write_with_embedding(source: Path, out: Path, embedding: Embedding, keys: Keys, modality: str | None) -> None:
    """Copy ``source`` to ``out`` and add the embedding; ``out`` appears only when it is complete.

    Everything else in the file stays as it is. ``out`` may be ``source``.
    """
    with _completed_copy(source, out) as root:
        _write(root if modality is None else root["mod"][modality], embedding, keys)


def write_with_scores(
    source: Path,
    out: Path,
    columns: Mapping[str, NDArray[np.float32]],
    uns: str,
    params: dict[str, Any],
    modality: str | None,
) -> None:
    """As :func:`write_with_embedding`, for columns of ``obs``."""
    from anndata.io import write_elem

    with _completed_copy(source, out) as root:
        group = root if modality is None else root["mod"][modality]
        _add_mappings(group, "uns")
        _write_columns(group["obs"], columns)
        write_elem(group["uns"], uns, {PARAMS: params})


def read_frame(path: Path, modality: str | None, *, obsm: str, uns: Sequence[str]) -> AnnData:
    """Read the annotation of the cells of a file, one embedding and some of ``uns``, and no matrix.

    Parameters
    ----------
    path
        File of an AnnData or MuData.
    modality
        Which AnnData of a MuData.
    obsm
        Key of the embedding.
    uns
        Keys that are read if they are there.

    Raises
    ------
    KeyError
        If there is no such embedding.
    """
    from anndata import AnnData
    from anndata.io import read_elem

    with open_container(path, modality) as found:
        obs = found.obs
    with _opened(path, "r") as root:
        group = root if modality is None else root["mod"][modality]
        there = sorted(group["obsm"]) if "obsm" in group else []
        if obsm not in there:
            msg = f"There is no obsm[{obsm!r}] in {path}; there are: {', '.join(there) or 'none'}. `scfm embed` makes one."
            raise KeyError(msg)
        kept = {name: read_elem(group["uns"][name]) for name in uns if "uns" in group and name in group["uns"]}
        return AnnData(obs=obs, obsm={obsm: read_elem(group["obsm"][obsm])}, uns=kept)


def write_with_fields(
    source: Path, out: Path, adata: AnnData, modality: str | None, *, obs: Sequence[str], obsm: str, uns: Sequence[str]
) -> None:
    """As :func:`write_with_embedding`, for the columns of ``obs`` and other fields of ``adata`` that are named."""
    from anndata.io import write_elem

    with _completed_copy(source, out) as root:
        group = root if modality is None else root["mod"][modality]
        _add_mappings(group, "obsm", "uns")
        _write_columns(group["obs"], {name: adata.obs[name].values for name in obs})
        write_elem(group["obsm"], obsm, adata.obsm[obsm])
        for name in uns:
            write_elem(group["uns"], name, adata.uns[name])


def _write_columns(obs: Any, columns: Mapping[str, Any]) -> None:
    """Add columns to a stored data frame, after those it has."""
    from anndata.io import write_elem

    for name, values in columns.items():
        write_elem(obs, name, values)
    order = [str(name) for name in obs.attrs["column-order"]]
    obs.attrs["column-order"] = order + [name for name in columns if name not in order]


def merge_store(store: EmbeddingStore, target: Path, modality: str | None = None) -> None:
    """Add the embeddings of a complete store to a file of the cells, a piece at a time.

    An HDF5 file is completed in a copy that takes its place in one step; to a zarr store the embeddings are added.

    Raises
    ------
    ValueError
        If shards are missing, or the cells of the file are others.
    """
    from anndata.io import write_elem

    missing = store.missing()
    if missing:
        msg = f"{store.path} lacks {len(missing)} of {len(store.shards)} shards; finish it with scfm.tl.embed_store first."
        raise ValueError(msg)
    file = _file_of(store, target, modality)
    is_source = store.is_of(file.number, target)
    with _opened(target) if target.is_dir() else _completed_copy(target, target) as root:
        group = root if modality is None else root["mod"][modality]
        _add_mappings(group, "obsm", "uns")
        write_elem(group["uns"], store.keys.uns, store.uns())
        _copy_rows(group["obsm"], store, file)
    if is_source:
        store.set_source(file.number, target)


def _file_of(store: EmbeddingStore, target: Path, modality: str | None) -> Shard:
    """Which file of the source it is: the first one with the same names of cells."""
    with open_container(target, modality) as found:
        for file in store.files():
            if file.stop - file.start == found.n_obs and all(
                (store.obs_names(file.start + low, file.start + high) == found.names(low, high)).all()
                for low, high in _pieces(found.n_obs)
            ):
                return file
    msg = f"{target} does not hold the cells of {store.path}; nothing was changed."
    raise ValueError(msg)


def _pieces(n_rows: int) -> list[tuple[int, int]]:
    return [(start, min(start + PIECE, n_rows)) for start in range(0, n_rows, PIECE)]


@contextmanager
def _completed_copy(source: Path, out: Path) -> Iterator[Any]:
    """Open a copy of ``source`` for writing, and put it in the place of ``out`` when that went well."""
    with atomic(out, overwrite=True) as work:
        if source.is_dir():
            shutil.copytree(source, work)
        else:
            shutil.copyfile(source, work)
            work.chmod(source.stat().st_mode | stat.S_IWUSR)
        with _opened(work) as root:
            yield root


def _add_mappings(group: Any, *names: str) -> None:
    from anndata.io import write_elem

    for name in names:
        if name not in group:
            write_elem(group, name, {})


def _copy_rows(obsm: Any, store: EmbeddingStore, file: Shard) -> None:
    if store.keys.obsm in obsm:
        del obsm[store.keys.obsm]
    n_obs = file.stop - file.start
    create = obsm.create_array if hasattr(obsm, "create_array") else obsm.create_dataset
    array = create(store.keys.obsm, shape=(n_obs, store.n_features), dtype="f4")
    for start, stop in _pieces(n_obs):
        array[start:stop] = store.read(file.start + start, file.start + stop)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


@contextmanager
def _opened(path: Path, mode: Literal["r", "r+"] = "r+") -> Iterator[Any]:
    if path.is_dir():
        import zarr

        if mode == "r":
            yield zarr.open_group(path, mode=mode, use_consolidated=False)
            return
        consolidated = zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None
        yield zarr.open_group(path, mode="r+", use_consolidated=False)
        if consolidated:
            zarr.consolidate_metadata(path)
        return
    import h5py

    with h5py.File(path, mode) as file:
        yield file


def _write(group: Any, embedding: Embedding, keys: Keys) -> None:
    """Write one matrix and its provenance as anndata does."""
    from anndata.io import read_elem, write_elem

    values = embedding.values
    if embedding.axis == "var":
        values = embedding.in_order_of(read_elem(group["var"]).index)
    _add_mappings(group, "obsm", "varm", "uns")
    write_elem(group[f"{embedding.axis}m"], keys.obsm, values)
    write_elem(group["uns"], keys.uns, {PARAMS: embedding.params})
