"""Sparse matrices as text (Matrix Market), which are read once and stored by cells in unnamed temporary files."""

from __future__ import annotations

import gzip
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._paths import check_room
from scfm.read._rows import Parts
from scfm.read.errors import reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike, NDArray

__all__ = ["TextMatrix"]

LINE = 1000
"""Bytes that are kept of a line before the entries."""
PIECE = 2**20
"""Entries that are handled at a time."""
LONGEST = 2**16
"""Bytes of a line of an entry at most."""
ENTRY_BYTES = 12
"""Of a gene, a cell and a value in temporary files."""
DTYPES = {"integer": np.dtype(np.int32), "real": np.dtype(np.float32)}
"""Of the values, by the word for them in the first line."""


class TextMatrix:
    """Text of genes × cells, seen as a scipy sparse matrix of cells × genes that is to be converted to CSR.

    Parameters
    ----------
    path
        The file, perhaps compressed by gzip.

    Raises
    ------
    ValueError
        If it starts in another way; in :meth:`tocsr` if it is damaged.
    """

    format = "mtx"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts: Parts | None = None
        with self._open() as text:
            self.dtype, (n_vars, n_obs, self._n_values) = self._header(text)
        self.shape = n_obs, n_vars

    def tocsr(self) -> Parts:
        """Read the text, the first time; temporary files take 12 bytes for each entry, 20 if they are not sorted by cell."""
        if self._parts is None:
            self._parts = self._converted()
        return self._parts

    def _open(self) -> Any:
        return gzip.open(self._path, "rb") if self._path.suffix == ".gz" else self._path.open("rb")

    def _header(self, text: Any) -> tuple[np.dtype[Any], list[int]]:
        words = _line(text).decode("utf-8", "replace").lower().split()
        line = _line(text)
        while line.startswith(b"%") or line.isspace():
            line = _line(text)
        if words[:3] != ["%%matrixmarket", "matrix", "coordinate"] or words[4:] != ["general"]:
            msg = f"{self._path} is no sparse matrix of the Matrix Market format; it starts with {' '.join(words)[:80]!r}."
            raise ValueError(msg)
        if words[3] not in DTYPES:
            msg = f"{self._path} holds values of the kind {words[3]!r}; counts are {' or '.join(DTYPES)}."
            raise ValueError(msg)
        sizes = [int(word) for word in line.split() if word.isdigit()]
        if len(sizes) != 3:
            msg = f"{self._path} is damaged: numbers of genes, cells and entries are missing."
            raise ValueError(msg)
        return DTYPES[words[3]], sizes

    def _entries(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.generic]]]:
        """Gene, cell and value of consecutive entries; genes and cells are counted from 0."""
        value_type = np.int64 if self.dtype.kind == "i" else self.dtype  # pandas wraps what is too large for its type
        kinds: dict[str, Any] = {"gene": np.int64, "cell": np.int64, "value": value_type}
        with self._open() as text:
            self._header(text)
            if not self._n_values:
                return
            n_read = 0
            lines: Any = _Lines(text, self._path)
            layout: dict[str, Any] = {"sep": r"\s+", "header": None, "names": list(kinds), "dtype": kinds}
            with pd.read_csv(lines, chunksize=PIECE, **layout) as pieces:
                for piece in pieces:
                    n_read += len(piece)
                    if not isinstance(piece.index, pd.RangeIndex):
                        msg = f"{self._path} is damaged: it has lines of more than gene, cell and value."
                        raise ValueError(msg)
                    gene, cell = piece["gene"].to_numpy() - 1, piece["cell"].to_numpy() - 1
                    if min(gene.min(), cell.min()) < 0 or gene.max() >= self.shape[1] or cell.max() >= self.shape[0]:
                        msg = f"{self._path} is damaged: it has entries beyond {self.shape[1]} genes and {self.shape[0]} cells."
                        raise ValueError(msg)
                    if n_read > self._n_values:
                        msg = f"{self._path} is damaged: it has more than {self._n_values} entries."
                        raise ValueError(msg)
                    value = piece["value"].to_numpy().astype(self.dtype, copy=False)
                    if value_type is np.int64 and (value != piece["value"]).any():
                        msg = f"{self._path} holds {piece['value'].abs().max()}; {self.dtype} is read."
                        raise ValueError(msg)
                    yield gene, cell, value

    def _converted(self) -> Parts:
        check_room(Path(gettempdir()), ENTRY_BYTES * self._n_values)
        with (
            reading(str(self._path)),
            TemporaryFile() as genes,
            TemporaryFile() as cells,
            TemporaryFile() as values,
        ):
            counts, last, sorted_by_cell = np.zeros(self.shape[0], np.int64), 0, True
            for gene, cell, value in self._entries():
                counts += np.bincount(cell, minlength=len(counts))
                sorted_by_cell = sorted_by_cell and cell[0] >= last and bool((np.diff(cell) >= 0).all())
                last = cell[-1]
                genes.write(gene.astype(np.int32).tobytes())
                cells.write(cell.astype(np.int32).tobytes())
                values.write(value.tobytes())
            indptr = np.concatenate([[0], np.cumsum(counts)])
            if indptr[-1] != self._n_values:
                msg = f"{self._path} is damaged: it has {indptr[-1]} instead of {self._n_values} entries."
                raise ValueError(msg)
            size = int(indptr[-1])
            parts = Parts(indptr, _mapped(genes, np.int32, size), _mapped(values, self.dtype, size))
            return parts if sorted_by_cell else _by_cell(parts, _mapped(cells, np.int32, size))


class _Lines:
    """A file of which pandas reads pieces; a line that is longer than a piece would fill its memory."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path

    def read(self, size: int) -> bytes:
        found: bytes = self._file.read(size)
        if len(found) > LONGEST and b"\n" not in found:
            msg = f"{self._path} is damaged: it has a line of more than {LONGEST:,} bytes."
            raise ValueError(msg)
        return found

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)


def _line(text: Any) -> bytes:
    """The next line, of a long one the beginning."""
    first = part = text.readline(LINE)
    while len(part) == LINE and not part.endswith(b"\n"):
        part = text.readline(LINE)
    return bytes(first)


def _mapped(file: Any, dtype: DTypeLike, size: int) -> NDArray[Any]:
    """Values in a file, which stay when it is closed; it becomes as long as they are."""
    if not size:
        return np.empty(0, dtype)
    file.truncate(size * np.dtype(dtype).itemsize)
    return np.memmap(file, dtype, "r+", shape=(size,))


def _by_cell(entries: Parts, cells: NDArray[np.int32]) -> Parts:
    """Entries in the order of their cells; those of a cell stay in order."""
    with TemporaryFile() as first, TemporaryFile() as second:
        indices, data = _mapped(first, np.int32, len(cells)), _mapped(second, entries.data.dtype, len(cells))
    free = entries.indptr[:-1].copy()
    for start in range(0, len(cells), PIECE):
        part = slice(start, start + PIECE)
        order = np.argsort(cells[part], kind="stable")
        cell, begin, counts = np.unique(cells[part][order], return_index=True, return_counts=True)
        places = np.repeat(free[cell] - begin, counts) + np.arange(len(order))
        indices[places], data[places] = entries.indices[part][order], entries.data[part][order]
        free[cell] += counts
    return Parts(entries.indptr, indices, data)
