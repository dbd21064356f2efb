"""Effects of perturbations as :func:`scfm.tl.perturb` stored them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scfm._keys import EMBEDDINGS, ON_GENES, PARAMS, STATES, state_endings, stored_under

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["Shifts", "effects_on_genes", "embeddings_of", "shifts_of"]


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
    params = _params_of(adata, key)
    endings = state_endings(len(params.get(STATES, ())), params["effect"])
    field = f"{key}_{state}" if STATES in params else key + endings[0]
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


def effects_on_genes(adata: AnnData, key: str, gene: str | None = None) -> pd.DataFrame:
    """Effects of perturbations on the states of other genes: ``names``, ``affected``, ``effect``, ``sd`` and ``n_cells``.

    Parameters
    ----------
    adata, key
        As for :func:`shifts_of`.
    gene
        Gene or group of genes whose effects these are; all by default.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If there is no such result, or ``gene`` was not perturbed.
    """
    _params_of(adata, key)
    parts = []
    if key in adata.varp:
        chosen = np.arange(adata.n_vars) if gene is None else np.flatnonzero(adata.var_names == gene)
        stored = [adata.varp[key + ending][chosen].tocoo() for ending in ON_GENES]
        row, column = stored[0].row, stored[0].col
        parts.append((adata.var_names[chosen[row]], adata.var_names[column], *(one.data for one in stored)))
    if f"{key}_effects" in adata.varm:
        tables = [adata.varm[f"{key}_effects{ending}"] for ending in ON_GENES]
        names = tables[0].columns if gene is None else tables[0].columns.intersection([gene])
        column, row = tables[0][names].notna().to_numpy().T.nonzero()
        values = [table[names].to_numpy()[row, column] for table in tables]
        parts.append((names[column], adata.var_names[row], *values))
    if not parts:
        msg = f"{key!r} holds no effects on other genes; call scfm.tl.perturb(adata, model, gene_effects=True) first."
        raise KeyError(msg)
    columns = ("names", "affected", "effect", "sd", "n_cells")
    found = pd.concat([pd.DataFrame(dict(zip(columns, part, strict=True))) for part in parts], ignore_index=True)
    if gene is not None and found.empty:
        msg = f"gene={gene!r} was not perturbed in any cell."
        raise KeyError(msg)
    return found.astype({"n_cells": np.int64})


def _params_of(adata: AnnData, key: str) -> Mapping[str, Any]:
    if not isinstance(adata, AnnData):
        msg = f"Effects of perturbations are read from an AnnData, got {type(adata).__name__}; of a MuData pass mdata[modality]."
        raise TypeError(msg)
    params: Mapping[str, Any] = stored_under(stored_under(adata.uns, key), PARAMS)
    if "n_cells_perturbed" not in params:
        msg = f"uns[{key!r}] holds no perturbation; call scfm.tl.perturb(adata, model, key_added={key!r}) first."
        raise KeyError(msg)
    return params


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
