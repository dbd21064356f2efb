"""A matrix of counts as a source, wherever it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from scfm._types import CountBlock
from scfm.read._rows import canonical, cut, join, native, select
from scfm.read.errors import reading
from scfm.read.source import check_blocks, check_range

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scfm.read._container import Container, Element
    from scfm.read._rows import Parts
    from scfm.read.source import SourceFile

__all__ = ["CountSource"]


class CountSource:
    """A cell by gene matrix of counts that is read in blocks of consecutive cells.

    Made by :func:`scfm.read.open_counts`. Nothing is loaded beyond the block at hand, except one integer a cell for a
    sparse matrix in a file. Reading never changes the object or the file behind it. One thread may run
    :meth:`blocks` while another uses the attributes.

    Parameters
    ----------
    container
        The object or file the matrix belongs to.
    element
        Which of its matrices is read.

    Raises
    ------
    TypeError
        If that matrix is on a GPU, or neither numeric nor boolean.
    ValueError
        If it is stored by columns in a file, or does not fit the annotation.
    """

    files: Sequence[SourceFile] = ()
    """Empty: the cells are those of one object or file."""

    def __init__(self, container: Container, element: Element) -> None:
        self._container = container
        with reading(container.path):
            matrix, self._rows, self._cols, var = container.stored(element)
        self._matrix = matrix
        self.element = element
        """Which of the matrices of the container it is."""
        self.matrix = element.name
        """Which matrix is read: ``"X"``, ``"raw.X"`` or ``"layers['counts']"``."""
        self.var = var
        """Annotation of the genes of the matrix that is read, which is that of raw for ``"raw.X"``."""
        self.n_obs = len(self._rows)
        """Number of cells."""
        self.n_vars = matrix.shape[1] if self._cols is None else len(self._cols)
        """Number of genes."""
        for axis, found, expected in (("cells", container.n_obs, self.n_obs), ("genes", len(var), self.n_vars)):
            if found != expected:
                msg = f"{matrix.where} has {expected} {axis}, but {found} are annotated: the file or object is damaged."
                raise ValueError(msg)

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells, in the order of the blocks."""
        with reading(self._container.path):
            return self._container.obs_names

    @property
    def var_names(self) -> pd.Index:
        """Names of the genes of the object or file, of which ``raw`` may have others."""
        with reading(self._container.path):
            return self._container.var.index

    @property
    def obs(self) -> pd.DataFrame:
        """Annotation of the cells; read from a file on first use, so before :meth:`close`. Not to be modified."""
        with reading(self._container.path):
            return self._container.obs

    @property
    def obs_columns(self) -> list[str]:
        """Names of the columns of :attr:`obs`."""
        with reading(self._container.path):
            return self._container.columns()

    def column(self, name: str) -> pd.Series:
        """One column of :attr:`obs`; of a file no other is read. A KeyError if it is not there."""
        if name not in self.obs_columns:
            raise KeyError(name)
        with reading(self._container.path):
            return self._container.column(name)

    def names(self, start: int, stop: int) -> NDArray[Any]:
        """Names of cells ``start`` to ``stop`` as an array of str objects, ``(stop - start,)``; of a file no others are read."""
        with reading(self._container.path):
            return self._container.names(start, stop)

    def read(self, start: int, stop: int) -> CountBlock:
        """Read cells ``start`` to ``stop``.

        Parameters
        ----------
        start, stop
            Positions in the source, ``0 <= start <= stop <= n_obs``.

        Returns
        -------
        The counts: indptr int64 ``(n_cells + 1,)``, indices int32 and data ``(nnz,)``, totals float64 ``(n_cells,)``.
        Data keep the dtype of the source, except that booleans become uint8, float16 becomes float32 and non-native
        byte order becomes native. The arrays may share memory with the source and are not to be written to.

        Raises
        ------
        ValueError
            If the positions are not in the source.
        """
        check_range(self.n_obs, start, stop)
        return self._block(start, self._parts(start, stop))

    def blocks(
        self, rows: int = 4096, *, start: int = 0, stop: int | None = None, max_nnz: int | None = None
    ) -> Iterator[CountBlock]:
        """Read cells in order, block after block.

        Parameters
        ----------
        rows
            Most cells of a block.
        start, stop
            Which cells; all of them by default.
        max_nnz
            Most stored values of a block: it closes before the cell that would exceed them, but holds at least one
            cell. In a view of some genes of a sparse matrix, the values of the other genes count as well, because they
            are read, too.

        Yields
        ------
        Blocks as :meth:`read` returns them.

        Raises
        ------
        ValueError
            If the positions are not in the source, or ``rows`` or ``max_nnz`` is less than 1.
        """
        stop = self.n_obs if stop is None else stop
        check_blocks(self.n_obs, start, stop, rows, max_nnz)
        if max_nnz is None:
            return (self.read(row, min(row + rows, stop)) for row in range(start, stop, rows))
        if self._matrix.stored(self._rows[:0]) is not None:
            return self._counted_blocks(rows, start, stop, max_nnz)
        return self._uncounted_blocks(rows, start, stop, max_nnz)

    def close(self) -> None:
        """Close the file if :func:`~scfm.read.open_counts` opened it; a handle that the caller opened stays open."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CountSource({self._container.label}: {self.matrix}, {self.n_obs} cells × {self.n_vars} genes)"

    def peek(self, start: int, stop: int) -> CountBlock:
        """Read a few cells while it is not settled that this matrix will be used."""
        rows = self._rows[start:stop]
        if isinstance(rows, range) and rows.step == 1:
            with reading(self._container.path):
                return self._block(start, self._selected(self._matrix.peek(rows)))
        return self.read(start, stop)

    def _parts(self, start: int, stop: int) -> Parts:
        with reading(self._container.path):
            return self._selected(self._matrix.take(self._rows[start:stop]))

    def _selected(self, parts: Parts) -> Parts:
        parts = parts._replace(data=native(parts.data))
        return parts if self._cols is None else select(parts, self._matrix.shape[1], self._cols)

    def _block(self, row0: int, parts: Parts) -> CountBlock:
        parts, totals = canonical(parts, self.n_vars)
        data = parts.data.view(np.uint8) if parts.data.dtype == np.bool_ else parts.data
        return CountBlock(row0, parts.indptr, parts.indices, data, totals)

    def _counted_blocks(self, rows: int, start: int, stop: int, max_nnz: int) -> Iterator[CountBlock]:
        row = start
        while row < stop:
            counts = self._matrix.stored(self._rows[row : min(row + rows, stop)])
            end = row + _fitting(np.cumsum(cast("NDArray[np.int64]", counts)), max_nnz)
            yield self.read(row, end)
            row = end

    def _uncounted_blocks(self, rows: int, start: int, stop: int, max_nnz: int) -> Iterator[CountBlock]:
        """Read ahead in pieces, and keep what lies behind the border of a block for the next one."""
        row, ahead = start, self._parts(start, start)
        while row < stop:
            pieces, n_cells, nnz = [ahead], len(ahead.indptr) - 1, len(ahead.data)
            while n_cells < rows and nnz <= max_nnz and row + n_cells < stop:
                first = row + n_cells
                pieces.append(self._parts(first, min(first + self._matrix.step, row + rows, stop)))
                n_cells += len(pieces[-1].indptr) - 1
                nnz += len(pieces[-1].data)
            ahead = join(pieces)
            closed = _fitting(ahead.indptr[1:], max_nnz)
            yield self._block(row, cut(ahead, 0, closed))
            ahead, row = cut(ahead, closed, n_cells), row + closed


def _fitting(sums: NDArray[np.int64] | NDArray[np.intp], max_nnz: int) -> int:
    """How many rows stay within ``max_nnz``, at least one."""
    return max(1, int(np.searchsorted(sums, max_nnz, side="right")))
