"""Files of loompy (``.loom``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scfm.read._container import Element, Stored, TableContainer
from scfm.read._tables import text_of
from scfm.read.backed import DenseStored, is_group

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LoomContainer", "is_loom"]

CELLS = ("CellID", "obs_names", "cell_names")
"""Attributes of columns that name the cells, the first that is there."""
GENES = ("Gene", "var_names", "gene_names")
"""Attributes of rows that name the genes, the first that is there."""


def is_loom(root: Any) -> bool:
    """Whether an HDF5 file is one of loompy."""
    return all(name in root for name in ("matrix", "row_attrs", "col_attrs")) and not is_group(root["matrix"])


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
        n_vars, n_obs = root["matrix"].shape
        super().__init__(label, _table(root["col_attrs"], n_obs, CELLS), _table(root["row_attrs"], n_vars, GENES))
        self.layers = list(root["layers"]) if "layers" in root else []

    def stored(self, element: Element) -> Stored:
        """Find one of the matrices."""
        array = self._root["matrix" if element.kind == "X" else f"layers/{element.layer}"]
        matrix = DenseStored(array, f"{element.name} of {self.label}", by_columns=True)
        return Stored(matrix, range(matrix.shape[0]), None, self.var)


def _table(attributes: Any, length: int, names: Sequence[str]) -> pd.DataFrame:
    found = {name: attributes[name] for name in attributes if attributes[name].shape == (length,)}
    index = next((name for name in names if name in found), None)
    rows = pd.RangeIndex(length).astype(str) if index is None else text_of(found.pop(index))
    columns = {name: text_of(array) if array.dtype.kind in "SO" else array[()] for name, array in found.items()}
    return pd.DataFrame(columns, index=rows)
