"""Parts of a CSR matrix and what is done with them; the interface that every stored matrix implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse

from scfm.read.kernels import scan_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Rows = range | NDArray[np.int64]

__all__ = [
    "MatrixRows",
    "Parts",
    "canonical",
    "checked",
    "cut",
    "join",
    "native",
    "pick",
    "select",
    "sparsify",
]

PIECE = 2**24
"""Elements of a dense matrix that are looked at together (64 MiB of float32)."""
GAP = 16
"""Unwanted rows between two wanted ones that are cheaper to read than a second call into the file."""
SPAN = 2048
"""Most rows that are read together when only some of them are wanted."""


class Parts(NamedTuple):
    """The three arrays of a CSR matrix, any row order inside; ``indptr`` starts at 0."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[np.generic]
    totals: NDArray[np.float64] | None = None
    """Sum of each row, if it is known that all columns exist and ascend within the rows, each at most once."""


class MatrixRows(ABC):
    """A stored matrix that can be read by rows."""

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any], where: str) -> None:
        if dtype.kind not in "biuf":
            msg = f"{where} has dtype {dtype}; counts must be integers, floating point numbers or booleans."
            raise TypeError(msg)
        self.shape = shape
        self.where = where
        self.step = max(1, PIECE // max(1, shape[1]))

    @abstractmethod
    def span(self, start: int, stop: int) -> Parts:
        """Read stored rows ``start`` to ``stop``; the arrays may share memory with the matrix."""

    def stored(self, rows: Rows) -> NDArray[np.int64] | None:
        """Count the stored values of each row without reading them; ``None`` where that is impossible."""
        return None

    def peek(self, rows: range) -> Parts:
        """Read a few rows before it is known whether the matrix will be used."""
        return self.take(rows)

    def take(self, rows: Rows) -> Parts:
        """Read stored rows in any order, each as often as it is named."""
        if len(rows) == 0:
            return self.span(0, 0)
        if isinstance(rows, range) and rows.step == 1:
            return self.span(rows.start, rows.stop)
        rows = np.asarray(rows, dtype=np.int64)
        if (np.diff(rows) == 1).all():
            return self.span(int(rows[0]), int(rows[-1]) + 1)
        return self._gather(rows)

    def _gather(self, rows: NDArray[np.int64]) -> Parts:
        wanted, back = np.unique(rows, return_inverse=True)
        pieces = []
        for start, stop in _spans(wanted):
            inside = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)]
            pieces.append(pick(self.span(start, stop), inside - start))
        found = join(pieces)
        return found if np.array_equal(back, np.arange(len(wanted))) else pick(found, back)


def cut(parts: Parts, start: int, stop: int) -> Parts:
    """Rows ``start`` to ``stop`` of ``parts``, sharing memory."""
    low, high = parts.indptr[start], parts.indptr[stop]
    return Parts(parts.indptr[start : stop + 1] - low, parts.indices[low:high], parts.data[low:high])


def join(pieces: Sequence[Parts]) -> Parts:
    """Rows of all pieces, one piece after the other."""
    if len(pieces) == 1:
        return pieces[0]
    counts = np.concatenate([np.diff(piece.indptr) for piece in pieces])
    indices = np.concatenate([piece.indices for piece in pieces])
    return Parts(_indptr(counts), indices, np.concatenate([piece.data for piece in pieces]))


def pick(parts: Parts, rows: NDArray[np.int64]) -> Parts:
    """Rows of ``parts`` in the order of ``rows``; neighbours are copied together."""
    if len(rows) == 0:
        return cut(parts, 0, 0)
    ends = np.append(np.flatnonzero(np.diff(rows) != 1), len(rows) - 1)
    starts = np.append(0, ends[:-1] + 1)
    low, high = parts.indptr[rows[starts]].tolist(), parts.indptr[rows[ends] + 1].tolist()
    slices = [slice(a, b) for a, b in zip(low, high, strict=True)]
    return Parts(
        _indptr(parts.indptr[rows + 1] - parts.indptr[rows]),
        np.concatenate([parts.indices[part] for part in slices]),
        np.concatenate([parts.data[part] for part in slices]),
    )


def sparsify(dense: NDArray[np.generic]) -> Parts:
    """CSR parts of a dense 2-D array; NaN counts as stored."""
    dense = np.ascontiguousarray(dense)
    mask = dense != 0
    counts = np.count_nonzero(mask, axis=1)
    flat = np.flatnonzero(mask)
    columns = flat - np.repeat(np.arange(len(counts), dtype=np.int64) * dense.shape[1], counts)
    return Parts(_indptr(counts), columns.astype(np.int32), dense.ravel()[flat])


def checked(
    indptr: NDArray[np.int64], indices: NDArray[np.integer], data: NDArray[np.generic], matrix: MatrixRows
) -> Parts:
    """Parts with int32 columns, after a look whether each column exists: kernels index with them unguarded."""
    data = native(data)
    sums = np.empty(len(indptr) - 1)
    if scan_rows(indptr, indices, data, matrix.shape[1], sums):
        return Parts(indptr, indices.astype(np.int32, copy=False), data, sums)
    low, high = (int(indices.min()), int(indices.max())) if len(indices) else (0, -1)
    if low < 0 or high >= matrix.shape[1]:
        msg = f"{matrix.where} is damaged: it has {matrix.shape[1]} columns but stores columns {low} to {high}."
        raise ValueError(msg)
    return Parts(indptr, indices.astype(np.int32, copy=False), data)


def native(data: NDArray[np.generic]) -> NDArray[np.generic]:
    """Values in a dtype that scipy and compiled kernels take: float16 becomes float32, other byte orders the native one."""
    if data.dtype.kind == "f" and data.dtype.itemsize not in (4, 8):
        data = data.astype(np.float32 if data.dtype.itemsize < 4 else np.float64)
    return data.astype(data.dtype.newbyteorder("="), copy=False)


def select(parts: Parts, n_cols: int, columns: NDArray[np.int64]) -> Parts:
    """Keep some of the ``n_cols`` columns, in any order and each as often as it is named, and number them anew."""
    chosen = _matrix(parts, n_cols)[:, columns]
    return Parts(chosen.indptr.astype(np.int64), chosen.indices.astype(np.int32, copy=False), chosen.data)


def canonical(parts: Parts, n_cols: int) -> tuple[Parts, NDArray[np.float64]]:
    """Parts with each column at most once a row, ascending, and the sum of each row.

    They are copied only where needed. Entries of the same column are added up, whose sum may be too
    large for the dtype in which integers are stored.
    """
    if parts.totals is not None:
        return parts, parts.totals
    sums = np.empty(len(parts.indptr) - 1)
    if scan_rows(parts.indptr, parts.indices, parts.data, n_cols, sums):
        return parts, sums
    kind = parts.data.dtype
    wide = np.promote_types(kind, np.int64) if kind.kind in "iu" else kind
    matrix = _matrix(parts._replace(data=parts.data.astype(wide)), n_cols).copy()
    matrix.sum_duplicates()
    indptr, indices = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32, copy=False)
    scan_rows(indptr, indices, matrix.data, n_cols, sums)
    return Parts(indptr, indices, matrix.data), sums


def _matrix(parts: Parts, n_cols: int) -> Any:
    return sparse.csr_array((parts.data, parts.indices, parts.indptr), shape=(len(parts.indptr) - 1, n_cols))


def _indptr(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    out = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=out[1:])
    return out


def _spans(wanted: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Group sorted rows into contiguous stretches worth one read each."""
    spans: list[tuple[int, int]] = []
    for row in wanted.tolist():
        if spans and row - spans[-1][1] <= GAP and row - spans[-1][0] < SPAN:
            spans[-1] = (spans[-1][0], row + 1)
        else:
            spans.append((row, row + 1))
    return spans
