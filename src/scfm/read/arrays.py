"""Arrays in files, read a stretch at a time into memory that is there already."""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from scfm._settings import settings
from scfm.read._packed import check_packed, folder_of, packing_of

try:  # twice as fast, and installed by the extra `fast`
    from isal import isal_zlib as zlib
except ImportError:
    import zlib  # type: ignore[no-redef]

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["Pointers", "StoredArray", "check_chunks", "fast_codecs", "lost", "stored_array"]

WINDOW = 2**20
"""Row borders that are held in memory (8 MiB)."""
DEFLATE, SHUFFLE, CHECKSUM = 1, 2, 3
"""Numbers of the HDF5 filters that are undone here; gzip has a checksum of its own, so that of HDF5 is left out."""
ROOM, RATIO = 2**28, 100
"""Bytes that a chunk may declare whatever it takes in the file, and how many more for each of those."""
INFLATES = 1032
"""How many times more bytes gzip can make of some at most."""
PIPELINES = ([DEFLATE], [SHUFFLE, DEFLATE], [DEFLATE, CHECKSUM], [SHUFFLE, DEFLATE, CHECKSUM])


class StoredArray(ABC):
    """An array in a file."""

    piecewise = False
    """Whether many small reads cost no more than a large one."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.size = int(array.shape[0])
        self.dtype = np.dtype(array.dtype)

    @abstractmethod
    def fill(self, out: NDArray[np.generic], start: int, axis: int = 0) -> None:
        """Read what lies from ``start`` on along an axis into ``out``, which is contiguous and of the same dtype.

        Along other axes ``out`` is as long as the array.
        """

    def lacks(self, values: NDArray[np.generic], start: int) -> bool:
        """Whether some of the values that were read from ``start`` on are not in the file, but its fill value.

        The array has one dimension.
        """
        if not len(values):
            return False
        firsts = np.append(values[0], values[-start % self._step :: self._step])  # of all chunks
        return bool((firsts == self._fill).any()) and self._is_absent(start, start + len(values))

    @property
    @abstractmethod
    def _step(self) -> int:
        """Rows of what is stored together."""

    @property
    @abstractmethod
    def _fill(self) -> Any:
        """What is read where nothing was written."""

    @abstractmethod
    def _is_absent(self, start: int, stop: int) -> bool:
        """Whether nothing was written, or it is lost, somewhere in a stretch of one dimension."""


class ZarrArray(StoredArray):
    """An array of a zarr store; on the disk its chunks are looked at before they are unpacked."""

    def __init__(self, array: Any) -> None:
        super().__init__(array)
        self._folder = folder_of(array)
        self._packing = packing_of(array.metadata.to_dict()) if self._folder is not None else None

    def fill(self, out: NDArray[np.generic], start: int, axis: int = 0) -> None:
        from zarr.buffer.cpu import NDBuffer

        if self._folder is not None:
            lows = [start * (side == axis) for side in range(out.ndim)]
            for key in self._keys(lows, out.shape):
                check_packed(self._folder / key, self._packing)
        self._array.get_basic_selection(_stretch(out, start, axis), out=NDBuffer.from_numpy_array(out))

    @property
    def _step(self) -> int:
        return int((self._array.shards or self._array.chunks)[0])

    @property
    def _fill(self) -> Any:
        return self._array.fill_value

    def _is_absent(self, start: int, stop: int) -> bool:
        from zarr.core.sync import sync

        store, path = self._array.store, self._array.path
        keys = self._keys([start], [stop - start])
        return not all(sync(store.exists(f"{path}/{key}".lstrip("/"))) for key in keys)

    def _keys(self, lows: list[int], shape: Sequence[int]) -> Iterator[str]:
        """Where the chunks of a stretch are in the folder of the array."""
        steps = self._array.shards or self._array.chunks
        sides = zip(lows, shape, steps, strict=True)
        for place in itertools.product(*(range(low // step, -(-(low + n) // step)) for low, n, step in sides)):
            yield self._array.metadata.encode_chunk_key(place)


class H5Array(StoredArray):
    """A dataset of an HDF5 file, read by the HDF5 library."""

    def __init__(self, array: Any) -> None:
        super().__init__(array)
        self.piecewise = array.chunks is None

    def fill(self, out: NDArray[np.generic], start: int, axis: int = 0) -> None:
        if out.size:
            self._array.read_direct(out, _stretch(out, start, axis))

    @property
    def _step(self) -> int:
        return int((self._array.chunks or self._array.shape)[0])

    @property
    def _fill(self) -> Any:
        return self._array.fillvalue

    def _is_absent(self, start: int, stop: int) -> bool:
        if self._array.chunks is None:
            return not self._array.id.get_storage_size()
        return bool(self._array.id.get_num_chunks() < -(-self.size // self._step))


class DeflatedArray(H5Array):
    """A dataset of chunks compressed by gzip: the HDF5 library hands them out as they are, threads inflate them.

    The library itself inflates under a lock of the whole process, so it keeps one core busy at most. It also makes room for
    whatever a chunk inflates to; here that is never more than the chunk declares.
    """

    def __init__(self, array: Any, filters: list[int]) -> None:
        super().__init__(array)
        self._chunk, self._filters = tuple(map(int, array.chunks)), filters
        self._item = array.id.get_type().get_size()
        self._size = math.prod(self._chunk) * self._item
        self._last: tuple[tuple[int, ...], NDArray[np.generic]] | None = None

    def fill(self, out: NDArray[np.generic], start: int, axis: int = 0) -> None:
        lows = [start * (side == axis) for side in range(out.ndim)]
        sides = zip(lows, out.shape, self._chunk, strict=True)
        places = list(itertools.product(*(range(low - low % step, low + n, step) for low, n, step in sides)))
        if settings.threads == 1 or len(places) < 2:
            for place in places:
                self._place(out, lows, place, self._values(self._stored(place)))
            return
        with ThreadPoolExecutor(settings.threads) as pool:
            for place, values in zip(places, pool.map(self._values, map(self._stored, places)), strict=True):
                self._place(out, lows, place, values)

    def check(self) -> None:
        """Raise a ValueError if a chunk that can fill the memory inflates to more than it declares."""
        found: list[tuple[int, ...]] = []
        self._array.id.chunk_iter(
            lambda chunk: found.append(chunk.chunk_offset) if chunk.size > ROOM // INFLATES else None
        )
        for place in found:
            self._bytes(*self._stored(place))

    def _place(
        self, out: NDArray[np.generic], lows: list[int], place: tuple[int, ...], values: NDArray[np.generic]
    ) -> None:
        into, part = [], []
        for low, n, first, step in zip(lows, out.shape, place, self._chunk, strict=True):
            start, stop = max(low, first), min(low + n, first + step)
            into.append(slice(start - low, stop - low))
            part.append(slice(start - first, stop - first))
        out[tuple(into)] = values[tuple(part)]
        self._last = place, values

    def _stored(self, place: tuple[int, ...]) -> Any:
        """The values of a chunk if there is nothing to undo, else which filters it has skipped, and its bytes."""
        if self._last is not None and self._last[0] == place:
            return self._last[1]
        stored = self._array.id.get_chunk_info_by_coord(place).size
        if not stored:  # never written
            sides = zip(self._array.shape, place, self._chunk, strict=True)
            return np.full([min(step, n - first) for n, first, step in sides], self._array.fillvalue, self.dtype)
        if not (self._size - ROOM) / RATIO <= stored <= self._size + self._size // 512 + 64:
            self._refuse(f"takes {stored} bytes")
        return self._array.id.read_direct_chunk(place)

    def _values(self, found: NDArray[np.generic] | tuple[int, bytes]) -> NDArray[np.generic]:
        if isinstance(found, np.ndarray):
            return found
        flat, used = self._bytes(*found)
        if SHUFFLE in used:
            flat = np.ascontiguousarray(flat.reshape(self._item, -1).T).ravel()
        return flat.view(self.dtype).reshape(self._chunk)

    def _bytes(self, skipped: int, raw: bytes) -> tuple[NDArray[np.uint8], set[int]]:
        """The inflated bytes of a chunk, and the filters that it has gone through."""
        used = {kind for position, kind in enumerate(self._filters) if not skipped >> position & 1}
        raw = raw[:-4] if CHECKSUM in used else raw
        flat = np.frombuffer(self._inflated(raw) if DEFLATE in used else raw, np.uint8)
        if len(flat) != self._size:
            self._refuse(f"inflates to {len(flat)} bytes")
        return flat, used

    def _inflated(self, raw: bytes) -> bytes:
        unpacker = zlib.decompressobj()
        try:
            found: bytes = unpacker.decompress(raw, self._size + 1)
        except zlib.error as error:  # type: ignore[misc]
            self._refuse(f"cannot be inflated ({error})")
        if not unpacker.eof and len(found) <= self._size:
            self._refuse("is cut off")
        return found

    def _refuse(self, why: str) -> NoReturn:
        where = f"{self._array.name} of {self._array.file.filename}"
        msg = f"{where} is damaged: a compressed chunk of {self._size} bytes {why}."
        raise ValueError(msg)


def stored_array(array: Any) -> StoredArray:
    """Make a reader of an h5py dataset or a zarr array.

    Raises
    ------
    ValueError
        If it is compressed in a way that this installation of HDF5 cannot undo.
    """
    if not hasattr(array, "id"):
        return ZarrArray(array)
    if array.chunks is None:
        return H5Array(array)
    filters, size = _filters(array), array.dtype.itemsize
    # the library is faster at small chunks of a matrix, and these cannot fill the memory
    is_small = array.ndim > 1 and math.prod(array.chunks) * size <= ROOM // INFLATES
    if filters in PIPELINES and array.id.get_type().get_size() == size and not is_small:
        return DeflatedArray(array, filters)
    check_chunks(array)
    return H5Array(array)


def check_chunks(array: Any) -> None:
    """Look at the chunks of an h5py dataset that the HDF5 library is going to read.

    Raises
    ------
    ValueError
        If one that is compressed by gzip would fill the memory, or the data are compressed in a way that this
        installation of HDF5 cannot undo.
    """
    filters = _filters(array)
    if filters in PIPELINES and array.id.get_storage_size() > ROOM // INFLATES:
        DeflatedArray(array, filters).check()


def _filters(array: Any) -> list[int]:
    from h5py import h5z

    plist = array.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    missing = [number for number in filters if not h5z.filter_avail(number)]
    if missing:
        msg = (
            f"{array.name} of {array.file.filename} is compressed by the HDF5 filter {missing[0]}, which is not installed. "
            "pip install hdf5plugin, and import hdf5plugin before."
        )
        raise ValueError(msg)
    return filters


def _stretch(out: NDArray[np.generic], start: int, axis: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(start, start + out.shape[axis]))


@contextmanager
def fast_codecs(group: Any) -> Iterator[Any]:
    """Give a group of which arrays that are opened meanwhile are decoded by zarrs, of local zarr stores and where that is installed."""
    zarr = sys.modules.get("zarr")
    if zarr is None or not isinstance(getattr(group, "store", None), zarr.storage.LocalStore) or not find_spec("zarrs"):
        yield group
        return
    if not str(zarr.config.get("codec_pipeline.path")).startswith("zarr.core."):
        yield group  # the user has chosen
        return
    plain = zarr.storage.LocalStore(group.store.root, read_only=True)  # zarrs takes no other kind
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Array is unsupported by ZarrsCodecPipeline")  # then zarr itself decodes it
        yield zarr.open_group(plain, path=group.path, mode="r", use_consolidated=False)


def lost(where: str, part: str) -> ValueError:
    """The error for a sparse matrix of which a part is not in the file."""
    msg = (
        f"{where} is damaged: chunks of its {part} are missing, which would be read as zeros. Copy the file again, or write "
        "it again from the original, after X.eliminate_zeros() and with zarr.config.set({'array.write_empty_chunks': True})."
    )
    return ValueError(msg)


class Pointers:
    """Row borders of a CSR matrix in a file, of which a window is held in memory.

    Parameters
    ----------
    array
        ``indptr`` of the matrix.
    n_rows
        Rows of the matrix.
    stored
        Values of the matrix.
    where
        Its name in messages.
    """

    def __init__(self, array: Any, n_rows: int, stored: int, where: str) -> None:
        self._n_rows, self._stored, self._where = n_rows, stored, where
        self._first, self._window = 0, np.empty(0, np.int64)
        if array.shape != (n_rows + 1,):
            raise self._damaged()
        self._array = stored_array(array)
        self.between(0, 0)
        if self._window[0] != 0:
            raise self._damaged()

    def between(self, start: int, stop: int) -> NDArray[np.int64]:
        """Borders of rows ``start`` to ``stop``, ``stop - start + 1`` of them."""
        if start < self._first or stop >= self._first + len(self._window):
            found = np.empty(max(stop, min(start + WINDOW, self._n_rows)) + 1 - start, self._array.dtype)
            self._array.fill(found, start)
            window = found.astype(np.int64, copy=False)
            if (np.diff(window) < 0).any() or window[0] < 0 or window[-1] > self._stored:
                raise self._damaged()
            if self._stored and (window[1:2] == 0).any() and self._array.lacks(found, start):
                raise lost(self._where, "indptr")
            self._first, self._window = start, window
        return self._window[start - self._first : stop - self._first + 1]

    def _damaged(self) -> ValueError:
        msg = f"{self._where} is damaged: its indptr does not fit {self._n_rows} rows and {self._stored} stored values."
        return ValueError(msg)
