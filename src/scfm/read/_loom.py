"""Files of loompy (``.loom``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scfm.read._container import Element, Stored, TableContainer
from scfm.read._door import entry, entry_of_names, inside, is_group
from scfm.read._tables import text_of
from scfm.read.backed import DenseStored

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LoomContainer", "is_loom"]

CELLS = ("CellID", "obs_names", "cell_names")
"""Attributes of columns that name the cells, the first that is there."""
GENES = ("Gene", "var_names", "gene_names")
"""Attributes of rows that name the genes, the first that is there."""


def is_loom(root: Any) -> bool:
    """Whether an HDF5 file is one of loompy."""
    return all(name in root for name in ("matrix", "row_attrs", "col_attrs")) and not is_group(inside(root, "matrix"))


class LoomContainer(TableContainer):
    """A dense matrix of genes × cells with layers; attributes of one dimension are the columns of obs and var.

    Parameters
    ----------
    root
        The file.
    label
        Its name in messages.
    """

    def __init__(self, root: Any, label: str) -> None:
        self._root = root
        matrix, _ = entry_of_names(root, "matrix", chunks=False)  # without names, the matrix backs their number
        n_vars, n_obs = matrix.shape
        super().__init__(
            label, _table(inside(root, "col_attrs"), n_obs, CELLS), _table(inside(root, "row_attrs"), n_vars, GENES)
        )
        self.layers = list(inside(root, "layers")) if "layers" in root else []

    def stored(self, element: Element) -> Stored:
        """Find one of the matrices."""
        array = entry(self._root, "matrix" if element.kind == "X" else f"layers/{element.layer}", chunks=False)
        matrix = DenseStored(array, f"{element.name} of {self.label}", by_columns=True)
        return Stored(matrix, range(matrix.shape[0]), None, self.var)


def _table(attributes: Any, length: int, names: Sequence[str]) -> pd.DataFrame:
    found = {name: entry(attributes, name) for name in attributes}
    found = {name: array for name, array in found.items() if array.shape == (length,)}
    index = next((name for name in names if name in found), None)
    if index is not None:
        entry_of_names(attributes, index)
    rows = pd.RangeIndex(length).astype(str) if index is None else text_of(found.pop(index))
    columns = {name: text_of(array) if array.dtype.kind in "SO" else array[()] for name, array in found.items()}
    return pd.DataFrame(columns, index=rows)
