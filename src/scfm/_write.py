"""Add results to a copy of a file, without loading what else is in it."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scfm._paths import atomic, check_new, check_room, link_or_copy, reserve, settle, size_of
from scfm.read import check_links, entry, inside, is_anndata_file, open_container
from scfm.read.convert import check_storable, write_h5ad
from scfm.read.errors import reading
from scfm.run.store import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData

__all__ = [
    "Results",
    "add_mappings",
    "check_output",
    "completed_copy",
    "fill",
    "has_entry",
    "is_anndata_store",
    "is_mudata_file",
    "read_entry",
    "read_frame",
    "write_results",
]

METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
"""Files of a zarr store that change when something is added; chunks of what is there do not."""
SLACK = 2**20
"""Bytes that a file may grow by beside the values that are added."""


def check_output(source: Path, out: Path, modality: str | None, *, overwrite: bool) -> None:
    """Find out before the long work whether ``out`` can be written.

    Raises
    ------
    ValueError
        If the suffix is not ``.zarr`` for a zarr store, ``.h5mu`` for such a file, and ``.h5ad`` for any other, or ``source``
        is a store with links, or becomes an AnnData and has a column that cannot be stored.
    FileExistsError
        If ``out`` exists and is not to be overwritten, or is a folder of something else.
    FileNotFoundError
        If ``source`` or the folder of ``out`` does not exist.
    OSError
        If the folder of ``out`` cannot be written, or has no room for a copy of ``source``.
    """
    for path in (source, out):
        settle(path.resolve().parent)
    if not source.exists():
        several = any(sign in str(source) for sign in ("*", "?", ":/"))
        hint = " Patterns and addresses are for scfm.tl.embed_store." if several else ""
        msg = f"There is no file {source}.{hint}"
        raise FileNotFoundError(msg)
    check_links(source)
    is_store = source.is_dir() and is_anndata_file(source)
    suffix = ".zarr" if is_store else ".h5mu" if source.suffix == ".h5mu" else ".h5ad"
    if out.suffix != suffix:
        hint = " scfm.tl.embed_store and scfm.tl.perturb_store fill zarr stores." if out.suffix == ".zarr" else ""
        msg = f"Cannot make {out.name} of {source.name}: the name of the file to write must end in {suffix}.{hint}"
        raise ValueError(msg)
    check_new(
        out,
        overwrite=overwrite,
        hint="pass overwrite=True",
        replaces=is_anndata_store if suffix == ".zarr" else None,
    )
    check_room(out.resolve().parent, size_of(source))
    if not is_anndata_file(source):
        with open_container(source, modality) as found:
            check_storable(found.obs, "obs", source)
            check_storable(found.var, "var", source)


def is_anndata_store(path: Path) -> bool:
    """Whether a folder holds an AnnData or MuData in zarr."""
    import zarr

    try:
        return zarr.open_group(path, mode="r").attrs.get("encoding-type") in ("anndata", "MuData")
    except (OSError, ValueError):
        return False


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

    @property
    def nbytes(self) -> int:
        """About how many bytes the values take in a file."""
        return sum(_bytes_of(value) for _, _, value in self.items())

    def __str__(self) -> str:
        return " and ".join(f".{slot}[{name!r}]" for slot, name, _ in self.items())


def _bytes_of(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_bytes_of, value.values()))
    if hasattr(value, "indptr"):
        return sum(part.nbytes for part in (value.data, value.indices, value.indptr))
    return int(value.memory_usage().sum() if hasattr(value, "columns") else getattr(value, "nbytes", 0))


def write_results(
    source: Path, out: Path, results: Results, modality: str | None, stale: Sequence[tuple[str, str]] = ()
) -> None:
    """Copy ``source`` to ``out`` and add the results; ``out`` appears only when it is complete.

    Everything else in the file stays as it is, except that what is in the stale places, by slot and key, is removed. ``out`` may be ``source``. A file that is no AnnData becomes one.
    """
    if not is_anndata_file(source):
        with atomic(out, overwrite=True) as work:
            write_h5ad(source, work, modality)
            with _opened(work) as root:
                fill(root, results)
        return
    with completed_copy(source, out, results.nbytes) as root:
        fill(root if modality is None else root["mod"][modality], results, stale)


def is_mudata_file(path: Path) -> bool:
    """Whether a file holds modalities, by its name or its folders."""
    return path.suffix == ".h5mu" or (path / "mod").is_dir()


def read_entry(path: Path, modality: str | None, place: str) -> Any:
    """Read what is in a place such as ``uns/params``; ``None`` if nothing is."""
    from anndata.io import read_elem

    with _opened(path, "r") as root:
        where = _place(modality, place)
        return read_elem(entry(root, where)) if where in root else None


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
        kept = {name: read_elem(entry(group, f"uns/{name}")) for name in uns if "uns" in group and name in group["uns"]}
        return AnnData(obs=obs, obsm={name: read_elem(entry(group, f"obsm/{name}")) for name in obsm}, uns=kept)


@contextmanager
def completed_copy(source: Path, out: Path, n_bytes: int, note: Callable[[Path], None] | None = None) -> Iterator[Any]:
    """Open a copy of ``source`` to add about ``n_bytes``, and put it in the place of ``out`` when that went well.

    ``note`` is called with the complete copy before that.
    """
    check_links(source)
    before = fingerprint(source)
    with atomic(out, overwrite=True) as work:
        if source.is_dir():
            _copy_store(source, work, links=out.exists() and source.samefile(out))
        else:
            _copy_writable(source, work)
            reserve(work, n_bytes + SLACK)
        with _opened(work) as root:
            yield root
        if fingerprint(source) != before:
            msg = f"{source} was changed by another process while results were added to a copy of it: call again. {out} is as it was."
            raise RuntimeError(msg)
        if note is not None:
            note(work)


def _copy_store(source: Path, copy: Path, *, links: bool) -> None:
    """Copy a zarr store, or have a copy that is going to replace it share its chunks."""
    for name, _, names in os.walk(source, followlinks=True):
        folder = Path(name)
        _copy_writable(folder, place := copy / folder.relative_to(source))
        own = links and folder.resolve().is_relative_to(source.resolve())
        for file in (folder / name for name in names):
            if own and file.name not in METADATA and not file.is_symlink():
                link_or_copy(file, place / file.name)
            else:
                _copy_writable(file, place / file.name)


def _copy_writable(source: Path, copy: Path) -> None:
    """Copy a file, or make a folder, with the permissions of ``source``, that to write among them."""
    copy.mkdir() if source.is_dir() else shutil.copyfile(source, copy)
    copy.chmod(stat.S_IMODE(source.stat().st_mode) | stat.S_IWUSR)


def add_mappings(group: Any, *names: str) -> None:
    """Make empty slots of an AnnData where they are missing."""
    from anndata.io import write_elem

    for name in names:
        if name not in group:
            write_elem(group, name, {})
        inside(group, name)


@contextmanager
def _opened(path: Path, mode: Literal["r", "r+"] = "r+") -> Iterator[Any]:
    if mode == "r" and not is_anndata_file(path):
        yield {}
        return
    if path.is_dir():
        import zarr

        if mode == "r":
            yield zarr.open_group(path, mode=mode, use_consolidated=False)
            return
        with reading(path.name):
            root: Any = zarr.open_group(path, mode="r+", use_consolidated=False)
        yield root
        metadata = path / "zarr.json"
        if (path / ".zmetadata").exists() or (
            metadata.exists() and json.loads(metadata.read_bytes()).get("consolidated_metadata")
        ):
            with reading(path.name):
                zarr.consolidate_metadata(path)
        return
    import h5py

    with h5py.File(path, mode) as file:
        yield file


def fill(group: Any, results: Results, stale: Sequence[tuple[str, str]] = ()) -> None:
    """Write results as anndata does, columns of ``obs`` after those it has."""
    from anndata.io import write_elem

    for slot, name, value in results.items():
        add_mappings(group, slot)
        write_elem(group[slot], name, value)
    obs = group["obs"]
    order = [str(name) for name in obs.attrs["column-order"]]
    for slot, name in stale:
        if slot in group and name in group[slot]:
            del group[slot][name]
    left = [name for name in order if ("obs", name) not in stale]
    obs.attrs["column-order"] = left + [name for name in results.obs if name not in order]
