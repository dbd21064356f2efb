"""Chunks of zarr stores on the disk: what they unpack to, as their headers tell before anything is unpacked."""

from __future__ import annotations

import math
import stat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scfm._paths import check_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["PACKERS", "SHARDS", "Packing", "bytes_of", "check_packed", "codecs_of", "folder_of", "packing_of"]

PACKERS = ("blosc", "zstd", "gzip", "zlib", "lz4")
"""Codecs that make bytes fewer; of these and of shards an array has one at most."""
SHARDS = "sharding_indexed"
ROOM, ROOM_OF_TEXT, RATIO = 2**20, 2**26, 1100
"""Bytes that a chunk may unpack to beside twice what it declares; of values of variable length in any case, and how many
more for each of those that it takes."""
MOST = 2**15
"""How many times more bytes zstd can make of some."""
ZSTD, SKIPPED, BLOCK, LEAST = b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18", 2**17, 2**8
"""How frames of zstd begin, and the ends of the beginnings of others; bytes of a block at the most, and how many are counted
at the least, for a file can hold millions of empty ones."""
ABSENT = 2**64 - 1
"""Place of a chunk that is not in its shard."""


class Packing(NamedTuple):
    """How the chunks of an array are packed."""

    codec: str
    """What has packed a chunk."""
    declared: int
    """Bytes of its values; 0 where that depends on them."""
    n_inner: int = 0
    """Chunks in a shard; 0: a file is a chunk."""
    index_bytes: int = 0
    """Bytes of the table of them."""
    index_first: bool = False
    """Whether it is before them rather than after them."""

    def most(self, stored: int) -> int:
        """Bytes that a chunk may unpack to."""
        return ROOM + 2 * self.declared if self.declared else ROOM_OF_TEXT + RATIO * stored


def folder_of(element: Any) -> Path | None:
    """The folder of an element of a local zarr store."""
    store: Any = getattr(element, "store", None)
    root = getattr(store, "root", None)
    if "file" in getattr(getattr(store, "fs", None), "protocol", ()):  # file://
        root = Path(store.path)
    return root / element.path if isinstance(root, Path) else None


def bytes_of(dtype: Any) -> int:
    """Bytes of a value, from the metadata; 0 if it is of variable length."""
    if isinstance(dtype, dict):
        return int(dtype.get("configuration", {}).get("length_bytes", 0))
    try:
        found = np.dtype([tuple(field) for field in dtype] if isinstance(dtype, list) else dtype)
        return 0 if found.hasobject else found.itemsize
    except TypeError:  # "string"
        return 0


def codecs_of(metadata: dict[str, Any]) -> Iterator[str]:
    """Names of all codecs, filters and compressors of an array, those within shards, too."""
    for kind in ("codecs", "index_codecs", "filters", "compressor"):
        found = metadata.get(kind) or ()
        for codec in [found] if isinstance(found, dict) else found:
            yield _name(codec)
            yield from codecs_of(codec.get("configuration", {}))


def packing_of(metadata: dict[str, Any]) -> Packing | None:
    """How the chunks of an array are packed; ``None`` if in no way that has a header."""
    codec = next((name for name in codecs_of(metadata) if name in HEADERS), None)
    if codec is None:
        return None
    chunk = metadata["chunks"] if "chunks" in metadata else metadata["chunk_grid"]["configuration"]["chunk_shape"]
    n_bytes = bytes_of(metadata.get("data_type", metadata.get("dtype")))
    outer = {_name(codec): codec for codec in metadata.get("codecs", ())}
    if SHARDS not in outer or codec in outer:
        return Packing(codec, math.prod(chunk) * n_bytes)
    shard = outer[SHARDS]["configuration"]
    inner = [int(side) for side in shard["chunk_shape"]]
    n_inner = math.prod(outer // side for outer, side in zip(chunk, inner, strict=True))
    checked = 4 * any(_name(codec) == "crc32c" for codec in shard.get("index_codecs", ()))
    first = shard.get("index_location", "end") == "start"
    return Packing(codec, math.prod(inner) * n_bytes, n_inner, 16 * n_inner + checked, first)


def check_packed(path: Path, packing: Packing | None) -> None:
    """Raise a ValueError if a chunk is in a pipe, or unpacks to more than its array declares; it need not be there."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            check_regular(path)
        size = found.st_size
        if packing is None or size * MOST <= packing.most(0):
            return
        with path.open("rb", buffering=0) as file:
            for start, stop in _places(file, size, packing):
                most = packing.most(stop - start)
                file.seek(start)
                # read at once: each call into the system may wait for other threads
                packed = file.read(stop - start if packing.codec == "zstd" else HEAD)
                if HEADERS[packing.codec](packed, most) > most:
                    msg = f"{path} is damaged: a chunk unpacks to more than {most:,}."
                    raise ValueError(msg)
    except FileNotFoundError:
        return


def _places(file: IO[bytes], size: int, packing: Packing) -> Iterator[tuple[int, int]]:
    """Where the chunks in a file begin and end."""
    if not packing.n_inner:
        yield 0, size
        return
    file.seek(0 if packing.index_first else max(0, size - packing.index_bytes))
    table = file.read(min(16 * packing.n_inner, size))
    for start, n_bytes in np.frombuffer(table[: len(table) // 16 * 16], "<u8").reshape(-1, 2).tolist():
        if start != ABSENT and n_bytes * MOST > packing.most(0) and start < size:
            yield start, min(start + n_bytes, size)


def _of_zstd(packed: bytes, most: int) -> int:
    """Bytes of all blocks of all frames, of a packed block as many as it can have; no more are counted than are too many."""
    total, at = 0, 0
    while at < len(packed) and total <= most:
        head = packed[at : at + 8]
        if head[1:4] == SKIPPED and head[0] >> 4 == 5:
            at += 8 + int.from_bytes(head[4:], "little")
            total += LEAST
            continue
        if head[:4] != ZSTD or len(head) < 5:
            break  # the decoder will say so
        flags, single = head[4], head[4] >> 5 & 1
        at += 6 - single + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
        last = False
        while at < len(packed) and not last and total <= most:
            block = int.from_bytes(packed[at : at + 3], "little")
            last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            total += max(size if kind < 2 else BLOCK, LEAST)
            at += 3 + (1 if kind == 1 else size)
        at += 4 * (flags >> 2 & 1)
    return total


def _of_blosc(packed: bytes, most: int) -> int:
    return int.from_bytes(packed[4:8], "little")


def _of_lz4(packed: bytes, most: int) -> int:
    return int.from_bytes(packed[:4], "little")


HEADERS: dict[str, Callable[[bytes, int], int]] = {"zstd": _of_zstd, "blosc": _of_blosc, "lz4": _of_lz4}
"""What a chunk unpacks to, or more than so many."""
HEAD = 16
"""Bytes of the header of blosc, the longest of those that say it."""


def _name(codec: dict[str, Any]) -> str:
    return str(codec.get("name", codec.get("id"))).removeprefix("numcodecs.")
