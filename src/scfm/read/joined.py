"""Several files as one source."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np
import pandas as pd

from scfm._text import masked
from scfm.read._containers import open_container
from scfm.read.counts import CountSource
from scfm.read.errors import of_file
from scfm.read.source import SourceFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from scfm._types import CountBlock
    from scfm.read._container import Element

__all__ = ["JoinedSource"]

Fact = TypeVar("Fact")


class JoinedSource(Generic[Fact]):
    """The cells of several files one after the other, each with its own genes; one file is open at a time.

    Names and annotation are not to be read while :meth:`blocks` is under way, because that closes the file it reads.

    Parameters
    ----------
    paths
        The files.
    learn
        Called once with the source of each file, in order; what it returns is kept in :attr:`facts`.
    open_file
        Opens one of the files and chooses its matrix, as :func:`scfm.read.open_counts`; later the same matrix is opened
        without judging it again.
    modality
        Which AnnData of MuData files.

    Raises
    ------
    TypeError, ValueError, KeyError, OSError
        What opening one of the files or ``learn`` raises, with the path of that file.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        learn: Callable[[CountSource], Fact],
        open_file: Callable[[str], CountSource],
        modality: str | None = None,
    ) -> None:
        self.paths = [str(path) for path in paths]
        self._modality = modality
        self._elements: list[Element] = []
        self._open: tuple[int, CountSource] | None = None
        self.facts: list[Fact] = []
        self.sizes: list[int] = []
        """Number of cells of each file."""
        self.obs_columns: list[str] = []
        """Names of the columns of :attr:`obs`: those that all files have."""
        matrices: dict[str, None] = {}
        try:
            for number, path in enumerate(self.paths):
                self.close()
                with of_file(path):
                    source = open_file(path)
                    self._open = number, source
                    self.facts.append(learn(source))
                self._elements.append(source.element)
                self.sizes.append(source.n_obs)
                known = source.obs_columns
                self.obs_columns = [name for name in (self.obs_columns if number else known) if name in known]
                matrices[source.matrix] = None
        except BaseException:
            self.close()
            raise
        self._starts = [0, *accumulate(self.sizes)]
        self.n_obs = self._starts[-1]
        """Number of cells."""
        self.matrix = ", ".join(matrices)
        """Which matrix is read; of files that differ in this, all of them."""

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells, in the order of the blocks; a name may occur in several files."""
        return pd.Index(self.names(0, self.n_obs))

    @property
    def files(self) -> list[SourceFile]:
        """The files, in the order of the cells; addresses without logins."""
        return [SourceFile(masked(path), n_obs) for path, n_obs in zip(self.paths, self.sizes, strict=True)]

    @property
    def obs(self) -> pd.DataFrame:
        """Annotation of the cells; every file is opened for it."""
        return pd.concat([self.part(number).obs[self.obs_columns] for number in range(len(self.paths))])

    def column(self, name: str) -> pd.Series:
        """One column of :attr:`obs`, for which every file is opened. A KeyError if it is not in all of them."""
        if name not in self.obs_columns:
            raise KeyError(name)
        return pd.concat([self.part(number).column(name) for number in range(len(self.paths))], ignore_index=True)

    def opened(self, number: int) -> CountSource:
        """One of the files, to be closed by the caller."""
        return CountSource(open_container(self.paths[number], self._modality), self._elements[number])

    def part(self, number: int) -> CountSource:
        """The source of one of the files; the one before it is closed."""
        if self._open is None or self._open[0] != number:
            self.close()
            self._open = number, self.opened(number)
        return self._open[1]

    def place(self, row: int) -> tuple[int, int]:
        """Number of the file that a cell is in, and the position of the first cell of that file."""
        number = bisect_right(self._starts, row, hi=len(self.sizes)) - 1
        return number, self._starts[number]

    def names(self, start: int, stop: int) -> NDArray[Any]:
        """Names of cells ``start`` to ``stop``."""
        found = [self.part(number).names(low, high) for number, low, high in self._ranges(start, stop)]
        return np.concatenate(found) if found else np.empty(0, object)

    def blocks(
        self, rows: int = 4096, *, start: int = 0, stop: int | None = None, max_nnz: int | None = None
    ) -> Iterator[CountBlock]:
        """Read cells in order, as :meth:`CountSource.blocks`; no block goes across the border of a file.

        Columns refer to the genes of the file that the cells are in.
        """
        for number, low, high in self._ranges(start, self.n_obs if stop is None else stop):
            for block in self.part(number).blocks(rows, start=low, stop=high, max_nnz=max_nnz):
                yield replace(block, row0=block.row0 + self._starts[number])

    def close(self) -> None:
        """Close the file that is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def __repr__(self) -> str:
        return f"JoinedSource({len(self.paths)} files, {self.n_obs:,} cells)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Number of a file, and first and last cell in it, for each file that holds some of the cells."""
        for number, (low, size) in enumerate(zip(self._starts, self.sizes, strict=False)):
            first, last = max(start - low, 0), min(stop - low, size)
            if first < last:
                yield number, first, last
