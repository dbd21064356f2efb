"""The tables ``obs`` and ``var`` in files, of all versions of the format."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata.io import read_elem

from scfm.read._door import entry, entry_of_names, inside, is_group

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["StoredTable", "text_of"]


class StoredTable:
    """A data frame in an HDF5 file or zarr store, of which only the columns that are asked for are read.

    anndata has written it as a group of columns since 0.7, at first with the categories of all columns in a group
    ``__categories``, and as an array of records before, with the categories in ``uns``.

    Parameters
    ----------
    root
        Group of the AnnData, or of its raw.
    name
        ``"obs"`` or ``"var"``, or its place before anndata 0.7, ``"raw.var"``.
    """

    def __init__(self, root: Any, name: str) -> None:
        self._root, self._stored = root, inside(root, name)
        self._grouped = is_group(self._stored)
        self._index = str(self._stored.attrs["_index"] if self._grouped else self._stored.dtype.names[0])
        self._names, self._n_bytes = entry_of_names(*((self._stored, self._index) if self._grouped else (root, name)))

    def __len__(self) -> int:
        return len(self.names) if is_group(self._names) else int(self._names.shape[0])

    @cached_property
    def columns(self) -> list[str]:
        """Names of the columns."""
        if self._grouped:
            return [str(name) for name in self._stored.attrs["column-order"]]
        return [name for name in self._stored.dtype.names if name != self._index]

    @cached_property
    def names(self) -> pd.Index:
        """Names of the rows."""
        name = None if self._index == "_index" or not self._grouped else self._index
        return pd.Index(self.column(self._index), name=name)

    def names_between(self, start: int, stop: int) -> NDArray[Any]:
        """Names of some rows; of a group no others are read."""
        if not self._grouped or is_group(self._names):
            return self.names[start:stop].to_numpy(dtype=object)
        return text_of(self._names, start, stop)

    def column(self, name: str) -> Any:
        """Values of a column."""
        if not self._grouped:
            values, place = self._stored[name], f"uns/{name}_categories"
            values = np.char.decode(values, "utf-8").astype(object) if values.dtype.kind == "S" else values
            categories = text_of(entry(self._root, place)) if place in self._root else None
        else:
            stored, place = entry(self._stored, name, beside=self._n_bytes), f"__categories/{name}"
            values, old = _values_of(stored), "categories" in stored.attrs
            categories = read_elem(entry(self._stored, place)) if old else None
        return values if categories is None else pd.Categorical.from_codes(values, pd.Index(categories))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The whole table."""
        return pd.DataFrame({name: self.column(name) for name in self.columns}, index=self.names, columns=self.columns)


def _values_of(stored: Any) -> Any:
    """What anndata reads, sooner for the two usual kinds of columns."""
    if is_group(stored) and stored.attrs.get("encoding-type") == "categorical":
        categories, ordered = read_elem(stored["categories"]), bool(stored.attrs["ordered"])
        return pd.Categorical.from_codes(stored["codes"][...], categories, ordered=ordered)
    return read_elem(stored) if is_group(stored) or stored.dtype.kind not in "biuf" else stored[...]


def text_of(array: Any, start: int = 0, stop: int | None = None) -> NDArray[Any]:
    """A stretch of an array of strings, bytes or numbers, as str objects."""
    found = (array.asstr() if hasattr(array, "asstr") and array.dtype == object else array)[start:stop]
    if found.dtype.kind == "S":
        found = np.char.decode(found, "utf-8")
    return (found.astype(str) if found.dtype.kind in "biuf" else found).astype(object)
