"""Rank genes of groups of cells by their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._checks import check_least
from scfm._keys import PARAMS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from scipy import sparse

__all__ = ["COLUMNS", "cells_of_groups", "ranked_table", "table_of"]

COLUMNS = ("names", "scores", "logfoldchanges", "means", "pct_nz_group")
"""Of a table of ranked genes."""

PSEUDOSCORE = 1e-9
"""Added to both means of a fold change, as scanpy does."""


def cells_of_groups(labels: pd.Categorical | None, n_obs: int, n_cells: int | None, seed: int) -> NDArray[np.int64]:
    """Sorted positions of up to ``n_cells`` random cells of each group; cells without a label are skipped.

    Raises
    ------
    ValueError
        If no cell has a label, or ``n_cells`` is below 1.
    """
    if n_cells is not None:
        check_least("n_cells", n_cells)
    codes = np.zeros(n_obs, np.int64) if labels is None else np.asarray(labels.codes, np.int64)
    if labels is not None and not (codes >= 0).any():
        msg = "The column of groupby= holds no value but missing ones, so there is no group."
        raise ValueError(msg)
    order = np.random.default_rng(seed).permutation(n_obs) if n_cells is not None else np.arange(n_obs)
    groups = [order[codes[order] == code][:n_cells] for code in range(codes.max(initial=0) + 1)]
    return np.sort(np.concatenate(groups))


def ranked_table(scores: sparse.csr_matrix, labels: pd.Categorical, names: pd.Index) -> dict[str, Any]:
    """Genes of each group as record arrays with a field for each group, in the layout of scanpy.

    The highest score comes first. Genes without a score in any cell are the last ones.

    Parameters
    ----------
    scores
        Shape ``(n_cells, n_genes)``; genes without an entry count as 0.
    labels
        Group of each cell.
    names
        Names of the genes.
    """
    from scipy import sparse

    present = np.unique(labels.codes)
    groups = [str(labels.categories[code]) for code in present]
    member = sparse.csr_matrix((labels.codes[:, None] == present).T.astype(np.float64))
    sums = (member @ scores).toarray()
    stored = sparse.csr_matrix((np.ones_like(scores.data), scores.indices, scores.indptr), shape=scores.shape)
    sizes = np.asarray(member.sum(axis=1)).reshape(-1, 1)
    others = np.maximum(len(labels) - sizes, 1)
    means = sums / sizes
    rest = (sums.sum(axis=0) - sums) / others
    columns = {
        "scores": means - rest,
        "logfoldchanges": np.log2((means + PSEUDOSCORE) / (rest + PSEUDOSCORE)),
        "means": means,
        "pct_nz_group": (member @ stored).toarray() / sizes,
    }
    columns["pvals"] = columns["pvals_adj"] = np.full_like(means, np.nan)
    scored = columns["pct_nz_group"].any(axis=0)
    order = np.argsort(-np.where(scored, columns["scores"], -np.inf), axis=1, kind="stable")
    texts = names.to_numpy(dtype=object).astype(str)
    table = {"names": _records(groups, [texts[row] for row in order])}
    for name, values in columns.items():
        table[name] = _records(groups, np.take_along_axis(values, order, axis=1).astype(np.float32))
    return table


def _records(groups: list[str], rows: Any) -> NDArray[Any]:
    return np.rec.fromarrays(list(rows), dtype=[(group, row.dtype) for group, row in zip(groups, rows, strict=True)])


def table_of(
    result: Mapping[str, Any], groups: Sequence[str] | None = None, n_genes: int | None = None
) -> pd.DataFrame:
    """Ranked genes of groups, all by default, one below the other."""
    groups = list(result["names"].dtype.names if groups is None else groups)
    n_scored = int(result[PARAMS]["n_genes_scored"])
    rows = slice(n_scored if n_genes is None else min(n_genes, n_scored))
    tables = [pd.DataFrame({name: result[name][group][rows] for name in COLUMNS}) for group in groups]
    table = pd.concat(tables, ignore_index=True)
    codes = np.repeat(np.arange(len(groups)), [len(part) for part in tables])
    table["group"] = pd.Categorical.from_codes(codes, pd.Index(groups))
    return table[["group", *COLUMNS]]
