"""An AnnData in a group of an HDF5 file or a zarr store."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from scfm.read._container import Container, Element, Stored
from scfm.read._door import entry, inside
from scfm.read._tables import StoredTable
from scfm.read.backed import stored_matrix

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["FileContainer"]


class FileContainer(Container):
    """An AnnData in a group of an HDF5 file or zarr store, of which only the parts that are asked for are read.

    Parameters
    ----------
    root
        The group.
    label
        Its name in messages.
    """

    def __init__(self, root: Any, label: str) -> None:
        self.label = label
        self._root = root
        self._obs = StoredTable(root, "obs")
        self.layers = list(inside(root, "layers").keys()) if "layers" in root else []
        self.has_x = "X" in root and str(inside(root, "X").attrs.get("encoding-type")) != "null"
        self.has_raw = "raw/X" in root or "raw.X" in root
        self.n_obs = len(self._obs)

    @property
    def obs(self) -> pd.DataFrame:
        return self._obs.frame

    @property
    def obs_names(self) -> pd.Index:
        return self._obs.names

    @cached_property  # asked for by every candidate for the counts
    def var(self) -> pd.DataFrame:
        return StoredTable(self._root, "var").frame

    def columns(self) -> list[str]:
        """Names of the columns of ``obs``."""
        return self._obs.columns

    def column(self, name: str) -> pd.Series:
        """One column of ``obs``; no other is read."""
        import pandas as pd

        return pd.Series(self._obs.column(name))

    def names(self, start: int, stop: int) -> NDArray[Any]:
        """Names of some cells."""
        return self._obs.names_between(start, stop)

    def stored(self, element: Element) -> Stored:
        """Find one of the matrices."""
        raw = "raw/" if "raw/X" in self._root else "raw."
        path = {"X": "X", "raw": f"{raw}X", "layer": f"layers/{element.layer}"}[element.kind]
        matrix = stored_matrix(entry(self._root, path, chunks=False), element.name)
        var = StoredTable(self._root, f"{raw}var").frame if element.kind == "raw" else self.var
        return Stored(matrix, range(matrix.shape[0]), None, var)
