"""Rank genes of groups of cells by their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from scipy import sparse

__all__ = ["cells_of_groups", "ranked_table"]


def cells_of_groups(labels: pd.Categorical | None, n_obs: int, n_cells: int | None, seed: int) -> NDArray[np.int64]:
    """Sorted positions of up to ``n_cells`` random cells of each group; cells without a label are skipped.

    Raises
    ------
    ValueError
        If no cell has a label, or ``n_cells`` is below 1.
    """
    if n_cells is not None and n_cells < 1:
        msg = f"n_cells must be at least 1, got {n_cells}."
        raise ValueError(msg)
    codes = np.zeros(n_obs, np.int64) if labels is None else np.asarray(labels.codes, np.int64)
    if labels is not None and not (codes >= 0).any():
        msg = "The column of groupby= holds no value but missing ones, so there is no group to rank genes for."
        raise ValueError(msg)
    order = np.random.default_rng(seed).permutation(n_obs) if n_cells is not None else np.arange(n_obs)
    groups = [order[codes[order] == code][:n_cells] for code in range(codes.max(initial=0) + 1)]
    return np.sort(np.concatenate(groups))


def ranked_table(scores: sparse.csr_matrix, labels: pd.Categorical, names: pd.Index) -> dict[str, Any]:
    """Genes of each group, highest first, as record arrays with a field for each group.

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

    found = np.flatnonzero(np.bincount(scores.indices, minlength=scores.shape[1]))
    present = np.unique(labels.codes)
    groups = [str(labels.categories[code]) for code in present]
    member = sparse.csr_matrix((labels.codes[:, None] == present).T.astype(np.float64))
    sums = (member @ scores)[:, found].toarray()
    stored = sparse.csr_matrix((np.ones_like(scores.data), scores.indices, scores.indptr), shape=scores.shape)
    sizes = np.asarray(member.sum(axis=1)).reshape(-1, 1)
    others = np.maximum(len(labels) - sizes, 1)
    means = sums / sizes
    columns = {
        "scores": means - (sums.sum(axis=0) - sums) / others,
        "means": means,
        "pts": (member @ stored)[:, found].toarray() / sizes,
    }
    order = np.argsort(-columns["scores"], axis=1, kind="stable")
    kept = names.to_numpy(dtype=object)[found].astype(str)
    table = {"names": _records(groups, [kept[row] for row in order])}
    for name, values in columns.items():
        table[name] = _records(groups, np.take_along_axis(values, order, axis=1).astype(np.float32))
    return table


def _records(groups: list[str], rows: Any) -> NDArray[Any]:
    return np.rec.fromarrays(list(rows), dtype=[(group, row.dtype) for group, row in zip(groups, rows, strict=True)])
