"""Add results to a copy of a file, without loading what else is in it."""

from __future__ import annotations

import shutil
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from scfm._paths import atomic, check_new
from scfm.read import open_container

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData

    from scfm.run.store import EmbeddingStore, Shard

__all__ = [
    "Results",
    "check_output",
    "has_entry",
    "is_mudata_file",
    "merge_store",
    "read_entry",
    "read_frame",
    "write_results",
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
        several = any(sign in str(source) for sign in ("*", "?", ":/"))
        hint = " Patterns and addresses are for scfm.tl.embed_store." if several else ""
        msg = f"There is no file {source}.{hint}"
        raise FileNotFoundError(msg)
    if source.suffix not in SUFFIXES or out.suffix != source.suffix:
        msg = f"Cannot make {out.name} of {source.name}: both must end in the same of {', '.join(SUFFIXES)}."
        raise ValueError(msg)
    check_new(out, overwrite=overwrite, hint="pass overwrite=True")


@dataclass(frozen=True)
class Results:
    """What a verb adds to an AnnData: slot by slot, values under their names."""

    obs: Mapping[str, Any] = field(default_factory=dict)
    obsm: Mapping[str, Any] = field(default_factory=dict)
    varm: Mapping[str, Any] = field(default_factory=dict)
    varp: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, Any] = field(default_factory=dict)
    uns: Mapping[str, Any] = field(default_factory=dict)

    def items(self) -> Iterator[tuple[str, str, Any]]:
        """Slot, name and value of everything there is."""
        for slot in fields(self):
            for name, value in getattr(self, slot.name).items():
                yield slot.name, name, value

    def __str__(self) -> str:
        return " and ".join(f".{slot}[{name!r}]" for slot, name, _ in self.items())


def write_results(source: Path, out: Path, results: Results, modality: str | None) -> None:
    """Copy ``source`` to ``out`` and add the results; ``out`` appears only when it is complete.

    Everything else in the file stays as it is. ``out`` may be ``source``.
    """
    with _completed_copy(source, out) as root:
        _fill(root if modality is None else root["mod"][modality], results)


def is_mudata_file(path: Path) -> bool:
    """Whether a file holds modalities, by its name or its folders."""
    return path.suffix == ".h5mu" or (path / "mod").is_dir()


def read_entry(path: Path, modality: str | None, place: str) -> Any:
    """Read what is in a place such as ``uns/params``; ``None`` if nothing is."""
    from anndata.io import read_elem

    with _opened(path, "r") as root:
        where = _place(modality, place)
        return read_elem(root[where]) if where in root else None


def has_entry(path: Path, modality: str | None, place: str) -> bool:
    """Whether something is in a place; it is not read."""
    with _opened(path, "r") as root:
        return _place(modality, place) in root


def _place(modality: str | None, place: str) -> str:
    return place if modality is None else f"mod/{modality}/{place}"


def read_frame(path: Path, modality: str | None, *, obsm: Sequence[str], uns: Sequence[str]) -> AnnData:
    """Read the annotation of the cells of a file, some of ``obsm`` and of ``uns``, and no matrix.

    Parameters
    ----------
    path
        File of an AnnData or MuData.
    modality
        Which AnnData of a MuData.
    obsm
        Keys of embeddings and tables of cells.
    uns
        Keys that are read if they are there.

    Raises
    ------
    KeyError
        If one of ``obsm`` is missing.
    """
    from anndata import AnnData
    from anndata.io import read_elem

    with open_container(path, modality) as found:
        obs = found.obs
    with _opened(path, "r") as root:
        group = root if modality is None else root["mod"][modality]
        there = sorted(group["obsm"]) if "obsm" in group else []
        missing = [name for name in obsm if name not in there]
        if missing:
            msg = f"There is no obsm[{missing[0]!r}] in {path}; there are: {', '.join(there) or 'none'}. scfm.tl.embed makes one."
            raise KeyError(msg)
        kept = {name: read_elem(group["uns"][name]) for name in uns if "uns" in group and name in group["uns"]}
        return AnnData(obs=obs, obsm={name: read_elem(group["obsm"][name]) for name in obsm}, uns=kept)


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


def _fill(group: Any, results: Results) -> None:
    """Write results as anndata does, columns of ``obs`` after those it has."""
    from anndata.io import write_elem

    for slot, name, value in results.items():
        _add_mappings(group, slot)
        write_elem(group[slot], name, value)
    obs = group["obs"]
    order = [str(name) for name in obs.attrs["column-order"]]
    obs.attrs["column-order"] = order + [name for name in results.obs if name not in order]
