"""The door through which files of others come in: whatever is read of an HDF5 file or a zarr store is looked up here first.

What leads out of a file, what is packed in another way than those listed here, and sizes that the file cannot back are refused
before anything is decoded. Only metadata are looked at, and only those of what is going to be read.
"""

from __future__ import annotations

import json
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from h5py import Dataset, Datatype, File, Group, h5d, h5f, h5g, h5l, h5o

from scfm._paths import check_regular
from scfm._settings import settings
from scfm._text import masked
from scfm.read._packed import PACKERS, SHARDS, bytes_of, check_packed, codecs_of, folder_of, packing_of
from scfm.read.arrays import check_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["check_links", "entry", "entry_of_names", "file_of", "inside", "is_group", "open_store"]

FILTERS = {
    **{1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 32000: "lzf"},
    # of hdf5plugin
    **{307: "bzip2", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32017: "sz"},
    **{32018: "fcidecomp", 32024: "sz3", 32026: "blosc2", 32028: "sperr"},
}
"""Filters of HDF5 by their numbers."""
CODECS = (
    *("bytes", "blosc", "zstd", "gzip", "zlib", "lz4", "crc32c", "shuffle"),
    *("sharding_indexed", "transpose", "delta", "vlen-utf8"),
)
"""Codecs of zarr; those of numcodecs are also called ``numcodecs.<name>``."""
ROOM, RATIO = 2**26, 1100
"""Bytes that an element may declare whatever it takes in the file, and how many more for each of those (gzip: 1,032)."""
ROWS, PER_BYTE = 2**16, 64
"""Names that a table may declare whatever they take in the file, and how many more for each byte (numbered names: 36)."""
KINDS = {h5f.FileID: File, h5g.GroupID: Group, h5d.DatasetID: Dataset}
"""What h5py makes of its identifiers."""
UNKNOWN = 16
"""Bytes of a value of variable length."""
HOPS = 16
"""Links within a file that may follow each other."""
ALLOW = "If that is meant to be, set scfm.settings.allow_external = True, or SCFM_ALLOW_EXTERNAL=1."


class Claim(NamedTuple):
    """What an array says of its size, and what there is of it."""

    rows: int
    """Its longest side."""
    declared: int
    """Bytes of its values, or of one chunk where that is more."""
    stored: Callable[[], int]
    """Bytes that it takes in the file."""


def is_group(element: Any) -> bool:
    """Whether an element of a file is a group rather than an array."""
    return hasattr(element, "keys")


def file_of(element: Any) -> str:
    """Path or address of the file or store that an element belongs to, without a login."""
    if hasattr(element, "file"):
        return str(element.file.filename)
    return masked(getattr(element.store, "root", None) or getattr(element.store, "path", element.store))


def open_store(path: Path, mode: Literal["r", "r+"] = "r") -> Any:
    """Open the root of a zarr store on the disk, of which nothing but files is read.

    Consolidated metadata are left aside, which do not know what was added after they were written.
    """
    import zarr

    from scfm.read._local import FileStore

    return zarr.open_group(FileStore(path, read_only=mode == "r"), mode=mode, use_consolidated=False)


def inside(group: Any, path: str) -> Any:
    """An element of a group that is in the same file; whether it may be read is not looked at.

    Raises
    ------
    KeyError
        If it is not there.
    ValueError
        If a link leads out of the file.
    """
    folder = folder_of(group)
    if folder is not None:
        _check_way(folder, path)
        return group[path]
    return _element(_opened(group.id, path.encode(), HOPS)) if hasattr(group, "file") else group[path]


def entry(group: Any, path: str, *, beside: int = 0, chunks: bool = True) -> Any:
    """An element of a group, with all that is in it, that may be read.

    Parameters
    ----------
    group
        Group of an HDF5 file or a zarr store.
    path
        Where the element is in it.
    beside
        Bytes in the file, other than its own, that back its size.
    chunks
        Whether the chunks are looked at, too, which libraries will unpack. Those of matrices are when they are read.

    Raises
    ------
    KeyError
        If it is not there.
    ValueError
        If it leads out of the file, is packed in a way that is not known, or declares more than the file can hold.
    """
    return _entry(group, path, beside, chunks=chunks)[0]


def entry_of_names(group: Any, path: str, *, chunks: bool = True) -> tuple[Any, int]:
    """As :func:`entry` the names of the rows of a table, and the bytes that they take if there are many."""
    element, claims = _entry(group, path, 0, chunks=chunks)
    rows = max((claim.rows for claim in claims), default=0)
    stored = sum(claim.stored() for claim in claims) if rows > ROWS else 0
    if rows > ROWS + PER_BYTE * stored:
        _refuse(element, f"declares {rows:,} names in {stored:,} bytes", f"{PER_BYTE} names for each byte")
    return element, stored


def check_links(path: Path) -> None:
    """Raise a ValueError if a store that is going to be copied holds a link or a pipe."""
    if path.is_dir() and not settings.allow_external:
        for _ in _files(path):
            pass


def _entry(group: Any, path: str, beside: int, *, chunks: bool) -> tuple[Any, list[Claim]]:
    element = inside(group, path)
    folder = folder_of(element)
    if hasattr(element, "file"):
        claims = list(_claims_h5(element.id, set(), chunks=chunks))
    else:
        claims = list(_claims_remote(element) if folder is None else _claims_zarr(element, folder, chunks=chunks))
    declared = sum(claim.declared for claim in claims)
    if declared > ROOM + RATIO * beside:
        stored = beside + sum(claim.stored() for claim in claims)
        if declared > ROOM + RATIO * stored:
            _refuse(element, f"declares {declared:,} bytes of values in {stored:,}", f"{RATIO} for each byte")
    return element, claims


def _refuse(element: Any, found: str, accepted: str = "") -> NoReturn:
    """Raise a ValueError that says what is accepted, or else how it can be allowed."""
    advice = f"Accepted: {accepted}." if accepted else ALLOW
    msg = f"{element.name.strip('/') or 'The root'} of {file_of(element)} {found}, and is not read. {advice}"
    raise ValueError(msg)


# --- HDF5, by the identifiers of h5py, which takes a third of the time


def _opened(group: Any, path: bytes, hops: int) -> Any:
    """The identifier of what is in a group, which is an identifier, too."""
    for name in filter(None, path.split(b"/")):
        kind = group.links.get_info(name).type
        if kind == h5l.TYPE_EXTERNAL and not settings.allow_external:
            file, inner = (part.decode(errors="replace") for part in group.links.get_val(name))
            here = name.decode(errors="replace")
            _refuse(_element(group), f"has a link at {here} to {inner} in another file, {file}")
        if kind == h5l.TYPE_SOFT:
            link = group.links.get_val(name)
            if not hops:
                _refuse(_element(group), f"holds links in a circle, {name!r} to {link!r}", f"{HOPS} links")
            group = _opened(h5o.open(group, b"/") if link.startswith(b"/") else group, link, hops - 1)
        else:
            group = h5o.open(group, name)
    return group


def _element(found: Any) -> Any:
    return KINDS.get(type(found), Datatype)(found)


def _claims_h5(found: Any, seen: set[int], *, chunks: bool) -> Iterator[Claim]:
    if isinstance(found, h5g.GroupID):
        address = h5o.get_info(found).addr
        if address not in seen:  # a group can hold itself
            seen.add(address)
            for name in found:
                yield from _claims_h5(_opened(found, name, HOPS), seen, chunks=chunks)
    if not isinstance(found, h5d.DatasetID):
        return
    plist = found.get_create_plist()
    layout = plist.get_layout()
    n_files = plist.get_external_count() if layout == h5d.CONTIGUOUS else 0
    elsewhere = n_files > 0 or layout == h5d.VIRTUAL
    if elsewhere and not settings.allow_external:
        where = plist.get_external(0)[0].decode(errors="replace") if n_files else "as a virtual dataset"
        _refuse(_element(found), f"keeps its values in other files, {where}")
    shape = found.shape or ()  # None: there is no value
    n_values = math.prod(shape)
    if layout == h5d.CHUNKED:
        n_values = max(n_values, math.prod(plist.get_chunk()))
        filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
        for number in filters:
            if number not in FILTERS:
                _refuse(_element(found), f"is packed by the HDF5 filter {number}", ", ".join(FILTERS.values()))
        if chunks and filters:
            check_chunks(_element(found))
    stored = (lambda: sys.maxsize) if elsewhere else found.get_storage_size
    yield Claim(max(shape, default=1), n_values * found.get_type().get_size(), stored)


# --- zarr


def _check_way(folder: Path, path: str) -> None:
    for name in filter(None, path.split("/")):
        folder /= name
        if folder.is_symlink() and not settings.allow_external:
            _refuse_link(folder)


def _refuse_link(link: Path) -> NoReturn:
    msg = f"{link} is a link, to {os.readlink(link)}, within a store, and is not followed. {ALLOW}"  # noqa: PTH115 (shorter)
    raise ValueError(msg)


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All files in a folder, none of which is a link, a pipe or a device."""
    with os.scandir(folder) as found:
        for item in found:
            if item.is_symlink() and not settings.allow_external:
                _refuse_link(Path(item.path))
            if item.is_dir():
                yield from _files(Path(item.path))
            else:
                if not item.is_file():
                    check_regular(Path(item.path))
                yield item


def _claims_zarr(element: Any, folder: Path, *, chunks: bool) -> Iterator[Claim]:
    for item in _files(folder):
        if item.name in ("zarr.json", ".zarray"):
            metadata, inner = json.loads(Path(item.path).read_bytes()), Path(item.path).parent
            if metadata.get("node_type", "array") == "array":
                yield _claim_zarr(metadata, element, partial(_size, inner))
                packing = packing_of(metadata) if chunks else None
                for file in _files(inner) if packing is not None else ():
                    if not file.name.startswith((".z", "zarr.json")):
                        check_packed(Path(file.path), packing)


def _claims_remote(element: Any) -> Iterator[Claim]:
    """The same by an address, where neither names nor sizes of objects may be known."""
    if not is_group(element):
        yield _claim_zarr(element.metadata.to_dict(), element, lambda: sys.maxsize)
        return
    try:
        names = list(element)
    except (NotImplementedError, OSError, ValueError):  # cannot be listed, so nobody else finds others
        names = []
    for name in {*names, *(known for known in PARTS if known in element)}:
        yield from _claims_remote(element[name])


PARTS = ("data", "indices", "indptr", "codes", "categories", "values", "mask")
"""What anndata stores columns and sparse matrices in."""


def _size(folder: Path) -> int:
    return sum(item.stat().st_size for item in _files(folder))


def _claim_zarr(metadata: dict[str, Any], element: Any, stored: Callable[[], int]) -> Claim:
    codecs = list(codecs_of(metadata))
    for name in codecs:
        if name not in CODECS:
            _refuse(element, f"is packed by the codec {name!r}", ", ".join(CODECS))
    packers = [name for name in codecs if name in PACKERS]
    if len(packers) > 1 or codecs.count(SHARDS) > 1:
        _refuse(
            element, f"is packed by {' and '.join(packers)}, or in shards of shards", f"one of {', '.join(PACKERS)}"
        )
    shape = [int(size) for size in metadata["shape"]]
    grid = metadata.get("chunk_grid", {}).get("configuration", {})
    chunk = metadata.get("chunks") or grid.get("chunk_shape") or (0,)
    n_values = max(math.prod(shape), math.prod(int(size) for size in chunk))
    each = bytes_of(metadata.get("data_type", metadata.get("dtype"))) or UNKNOWN
    return Claim(max(shape, default=1), n_values * each, stored)
