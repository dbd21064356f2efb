"""One-dimensional arrays in files, read a stretch at a time into memory that is there already."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from scfm._settings import settings

try:  # twice as fast, and installed by the extra `fast`
    from isal import isal_zlib as zlib
except ImportError:
    import zlib  # type: ignore[no-redef]

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Pointers", "StoredArray", "fast_codecs", "stored_array"]

WINDOW = 2**20
"""Row borders that are held in memory (8 MiB)."""
DEFLATE, SHUFFLE, CHECKSUM = 1, 2, 3
"""Numbers of the HDF5 filters that are undone here; gzip has a checksum of its own, so that of HDF5 is left out."""
ROOM, RATIO = 2**28, 100
"""Bytes that a chunk may declare whatever it takes in the file, and how many more for each of those."""
PIPELINES = ([DEFLATE], [SHUFFLE, DEFLATE], [DEFLATE, CHECKSUM], [SHUFFLE, DEFLATE, CHECKSUM])


class StoredArray(ABC):
    """A one-dimensional array in a file."""

    piecewise = False
    """Whether many small reads cost no more than a large one."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.size = int(array.shape[0])
        self.dtype = np.dtype(array.dtype)

    @abstractmethod
    def fill(self, out: NDArray[np.generic], start: int) -> None:
        """Read ``len(out)`` values from ``start`` on into ``out``, which is contiguous and of the same dtype."""


class ZarrArray(StoredArray):
    """An array of a zarr store."""

    def fill(self, out: NDArray[np.generic], start: int) -> None:
        from zarr.buffer.cpu import NDBuffer

        self._array.get_basic_selection(slice(start, start + len(out)), out=NDBuffer.from_numpy_array(out))


class H5Array(StoredArray):
    """A dataset of an HDF5 file, read by the HDF5 library."""

    def __init__(self, array: Any) -> None:
        super().__init__(array)
        self.piecewise = array.chunks is None

    def fill(self, out: NDArray[np.generic], start: int) -> None:
        if len(out):
            self._array.read_direct(out, np.s_[start : start + len(out)])


class DeflatedArray(H5Array):
    """A dataset of chunks compressed by gzip: the HDF5 library hands them out as they are, threads inflate them.

    The library itself inflates under a lock of the whole process, so it keeps one core busy at most. It also makes room for
    whatever a chunk inflates to; here that is never more than the chunk declares.
    """

    def __init__(self, array: Any, filters: list[int]) -> None:
        super().__init__(array)
        self._chunk, self._filters = int(array.chunks[0]), filters
        self._size = self._chunk * self.dtype.itemsize
        self._last: tuple[int, NDArray[np.generic]] | None = None

    def fill(self, out: NDArray[np.generic], start: int) -> None:
        stop = start + len(out)
        numbers = range(start // self._chunk, -(-stop // self._chunk))
        if settings.threads == 1 or len(numbers) < 2:
            for number in numbers:
                self._place(out, start, number, self._values(self._stored(number)))
            return
        with ThreadPoolExecutor(settings.threads) as pool:
            for number, values in zip(numbers, pool.map(self._values, map(self._stored, numbers)), strict=True):
                self._place(out, start, number, values)

    def _place(self, out: NDArray[np.generic], start: int, number: int, values: NDArray[np.generic]) -> None:
        first = number * self._chunk
        low, high = max(start, first), min(start + len(out), first + self._chunk)
        out[low - start : high - start] = values[low - first : high - first]
        self._last = number, values

    def _stored(self, number: int) -> NDArray[np.generic] | tuple[int, bytes]:
        """The values of a chunk if there is nothing to undo, else which filters it has skipped, and its bytes."""
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        first = number * self._chunk
        stored = self._array.id.get_chunk_info_by_coord((first,)).size
        if not stored:  # never written
            return np.full(min(self._chunk, self.size - first), self._array.fillvalue, self.dtype)
        if not (self._size - ROOM) / RATIO <= stored <= self._size + self._size // 512 + 64:
            self._refuse(f"takes {stored} bytes")
        found: tuple[int, bytes] = self._array.id.read_direct_chunk((first,))
        return found

    def _values(self, found: NDArray[np.generic] | tuple[int, bytes]) -> NDArray[np.generic]:
        if isinstance(found, np.ndarray):
            return found
        skipped, raw = found
        used = {kind for position, kind in enumerate(self._filters) if not skipped >> position & 1}
        raw = raw[:-4] if CHECKSUM in used else raw
        flat = np.frombuffer(self._inflated(raw) if DEFLATE in used else raw, np.uint8)
        if len(flat) != self._size:
            self._refuse(f"inflates to {len(flat)} bytes")
        if SHUFFLE in used:
            flat = np.ascontiguousarray(flat.reshape(self.dtype.itemsize, -1).T).ravel()
        return flat.view(self.dtype)

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
    """Make a reader of an h5py dataset or a zarr array of one dimension.

    Raises
    ------
    ValueError
        If it is compressed in a way that this installation of HDF5 cannot undo.
    """
    from h5py import h5z

    if not hasattr(array, "id"):
        return ZarrArray(array)
    if array.chunks is None:
        return H5Array(array)
    plist = array.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    missing = [number for number in filters if not h5z.filter_avail(number)]
    if missing:
        msg = (
            f"{array.name} of {array.file.filename} is compressed by the HDF5 filter {missing[0]}, which is not installed. "
            "pip install hdf5plugin, and import hdf5plugin before."
        )
        raise ValueError(msg)
    return DeflatedArray(array, filters) if filters in PIPELINES else H5Array(array)


@contextmanager
def fast_codecs(group: Any) -> Iterator[None]:
    """Let arrays of a local zarr store that are opened meanwhile be decoded by zarrs, where that is installed."""
    zarr = sys.modules.get("zarr")
    if zarr is None or not isinstance(getattr(group, "store", None), zarr.storage.LocalStore) or not find_spec("zarrs"):
        yield
        return
    if not str(zarr.config.get("codec_pipeline.path")).startswith("zarr.core."):
        yield  # the user has chosen
        return
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        yield


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
            self._first, self._window = start, window
        return self._window[start - self._first : stop - self._first + 1]

    def _damaged(self) -> ValueError:
        msg = f"{self._where} is damaged: its indptr does not fit {self._n_rows} rows and {self._stored} stored values."
        return ValueError(msg)
