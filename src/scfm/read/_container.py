"""What holds a cell by gene matrix with annotation; every kind of file is one of these in a module of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from scfm._checks import entry_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from scfm.read._rows import MatrixRows, Rows

__all__ = ["Container", "Element", "Stored", "TableContainer"]


@dataclass(frozen=True, slots=True)
class Element:
    """One matrix of a container."""

    kind: Literal["X", "raw", "layer"]
    layer: str = ""

    @property
    def name(self) -> str:
        """How the matrix is written in Python."""
        return {"X": "X", "raw": "raw.X", "layer": f"layers[{self.layer!r}]"}[self.kind]

    @property
    def argument(self) -> str:
        """The argument of ``open_counts`` that chooses it."""
        return {"X": "use_raw=False", "raw": "use_raw=True", "layer": f"layer={self.layer!r}"}[self.kind]


class Stored(NamedTuple):
    """A matrix where it lies, and which part of it belongs to the container."""

    matrix: MatrixRows
    """Reader of the matrix."""
    rows: Rows
    """Stored row of each cell."""
    cols: NDArray[np.int64] | None
    """Stored column of each gene; ``None``: all columns in order."""
    var: pd.DataFrame
    """Annotation of the genes."""


class Container(ABC):
    """Something with an X, perhaps a raw, layers, obs and var."""

    label: str
    layers: list[str]
    has_x: bool
    has_raw: bool
    n_obs: int
    path: str = ""
    """The file that :func:`open_container` opened; empty for an object."""
    file: Any = None
    """What is to be closed in the end."""

    @property
    @abstractmethod
    def obs(self) -> pd.DataFrame:
        """Annotation of the cells."""

    @property
    @abstractmethod
    def obs_names(self) -> pd.Index:
        """Names of the cells."""

    @property
    @abstractmethod
    def var(self) -> pd.DataFrame:
        """Annotation of the genes of X and the layers."""

    @abstractmethod
    def stored(self, element: Element) -> Stored:
        """Find one of the matrices."""

    def columns(self) -> list[str]:
        """Names of the columns of ``obs``."""
        return list(self.obs.columns)

    def column(self, name: str) -> pd.Series:
        """One column of ``obs``."""
        column: pd.Series = entry_of(self.obs, name, "obs")
        return column

    def names(self, start: int, stop: int) -> NDArray[Any]:
        """Names of some cells."""
        return self.obs_names[start:stop].to_numpy(dtype=object)

    def elements(self) -> list[Element]:
        """All matrices there are."""
        found = [Element("X")] * self.has_x + [Element("layer", name) for name in self.layers]
        return found + [Element("raw")] * self.has_raw

    def close(self) -> None:
        """Close what was opened for this container, and nothing else."""
        if self.file is not None:
            self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class TableContainer(Container):
    """One matrix and perhaps layers, with small tables that are in memory.

    Parameters
    ----------
    label
        Its name in messages.
    obs, var
        The tables.
    """

    has_x, has_raw = True, False

    def __init__(self, label: str, obs: pd.DataFrame, var: pd.DataFrame) -> None:
        self.label, self.layers, self.n_obs = label, [], len(obs)
        self._obs, self._var = obs, var

    @property
    def obs(self) -> pd.DataFrame:
        return self._obs

    @property
    def obs_names(self) -> pd.Index:
        return self._obs.index

    @property
    def var(self) -> pd.DataFrame:
        return self._var
