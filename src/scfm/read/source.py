"""What the rest of the package asks of a source, whatever its cells are stored in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["Source", "SourceFile", "check_blocks", "check_range"]

Block = TypeVar("Block", covariant=True)


class SourceFile(NamedTuple):
    """One of several files whose cells make up a source."""

    path: str
    n_obs: int
    """Number of cells."""


class Source(Protocol[Block]):
    """Cells that are read in blocks of consecutive ones.

    :class:`~scfm.read.CountSource` and ``JoinedSource`` give blocks of counts,
    :class:`~scfm.read.TokenizedSource` gives blocks of tokens.
    """

    @property
    def n_obs(self) -> int:
        """Number of cells."""

    @property
    def matrix(self) -> str:
        """Name of what is read, such as ``"X"``, ``"layers['counts']"`` or a column of token ids."""

    @property
    def files(self) -> Sequence[SourceFile]:
        """The files, in the order of the cells, where several data sets are read as one; else empty."""

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells, in the order of the blocks."""

    @property
    def obs_columns(self) -> list[str]:
        """Names of the columns of :attr:`obs`."""

    @property
    def obs(self) -> pd.DataFrame:
        """Annotation of the cells. Not to be modified."""

    def column(self, name: str) -> pd.Series:
        """One column of :attr:`obs`. A KeyError if it is not there."""

    def names(self, start: int, stop: int) -> NDArray[Any]:
        """Names of cells ``start`` to ``stop`` as an array of str objects, ``(stop - start,)``."""

    def blocks(
        self, rows: int = ..., *, start: int = ..., stop: int | None = ..., max_nnz: int | None = ...
    ) -> Iterator[Block]:
        """Read cells in order: at most ``rows`` and, but for a single cell, ``max_nnz`` stored values in a block."""


def check_range(n_obs: int, start: int, stop: int) -> None:
    """Raise a ValueError for cells that are not in a source."""
    if not 0 <= start <= stop <= n_obs:
        msg = f"Cells {start} to {stop} are not in a source of {n_obs} cells."
        raise ValueError(msg)


def check_blocks(n_obs: int, start: int, stop: int, rows: int, max_nnz: int | None) -> None:
    """As :func:`check_range`, and for blocks that could not hold a cell."""
    check_range(n_obs, start, stop)
    if rows < 1 or (max_nnz is not None and max_nnz < 1):
        msg = f"rows={rows} and max_nnz={max_nnz} must be at least 1."
        raise ValueError(msg)
