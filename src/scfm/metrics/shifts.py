"""Effects of perturbations as :func:`scfm.tl.perturb` stored them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scfm._keys import EMBEDDINGS, PARAMS, STATES, state_endings, stored_under

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Shifts", "embeddings_of", "shifts_of"]


@dataclass(frozen=True)
class Shifts:
    """Effects that were computed, one entry for each gene (or group of genes) of each cell."""

    cells: NDArray[np.int64]
    genes: NDArray[np.int64]
    """Position in ``names``."""
    values: NDArray[np.float64]
    names: pd.Index

    def of(self, chosen: NDArray[np.bool_]) -> Shifts:
        """Some of the entries."""
        return Shifts(self.cells[chosen], self.genes[chosen], self.values[chosen], self.names)


def shifts_of(adata: AnnData, key: str, state: str) -> Shifts:
    """Read what :func:`scfm.tl.perturb` stored.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If there is no such result, or no such state.
    """
    if not isinstance(adata, AnnData):
        msg = f"Effects of perturbations are read from an AnnData, got {type(adata).__name__}; of a MuData pass mdata[modality]."
        raise TypeError(msg)
    params = stored_under(stored_under(adata.uns, key), PARAMS)
    if "n_cells_perturbed" not in params:
        msg = f"uns[{key!r}] holds no perturbation; call scfm.tl.perturb(adata, model, key_added={key!r}) first."
        raise KeyError(msg)
    endings = state_endings(len(params.get(STATES, ())))
    field = f"{key}_{state}" if STATES in params else key
    if field not in [key + ending for ending in endings]:
        msg = f"state={state!r} was not computed; found {[ending.removeprefix('_') for ending in endings]}."
        raise KeyError(msg)
    parts, names = [], pd.Index([], dtype=object)
    if field in adata.layers:
        matrix = sparse.coo_matrix(adata.layers[field])
        parts.append((matrix.row, matrix.col, matrix.data))
        names = adata.var_names
    if field in adata.obsm:
        table = adata.obsm[field]
        row, column = np.nonzero(table.notna().to_numpy())
        parts.append((row, column + len(names), table.to_numpy()[row, column]))
        names = names.append(table.columns)
    cells, genes, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    kept = np.isfinite(values)
    return Shifts(cells[kept].astype(np.int64), genes[kept].astype(np.int64), values[kept].astype(np.float64), names)


def embeddings_of(adata: AnnData, key: str) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.str_]]:
    """Embeddings of cells and their copies that :func:`scfm.tl.perturb` stored, the row of each cell, and the perturbation.

    Cells may have been left out, sorted or joined with others since then; those that are still there are found by name.

    Raises
    ------
    KeyError
        If there are none, or none of their cells is left.
    ValueError
        If cells were moved, and their names repeat.
    """
    stored = stored_under(adata.uns, key).get(EMBEDDINGS)
    if stored is None:
        msg = (
            f"uns[{key!r}] holds no embeddings; call scfm.tl.perturb(adata, model, genes=[...], embeddings=True) first."
        )
        raise KeyError(msg)
    names, rows = np.asarray(stored["obs_names"]).astype(str), np.asarray(stored["cells"])
    there = adata.obs_names.astype(str)
    if len(rows) and (rows.max() >= len(there) or (there[rows] != names).any()):
        if not there.is_unique:
            msg = f"The cells of uns[{key!r}] are not where they were, and names of cells repeat, so that they cannot be found."
            raise ValueError(msg)
        rows = there.get_indexer(pd.Index(names))
    kept = rows >= 0
    if not kept.any():
        msg = f"None of the cells of uns[{key!r}] is in adata."
        raise KeyError(msg)
    return np.asarray(stored["X"])[kept], rows[kept], np.asarray(stored["perturbation"]).astype(str)[kept]
