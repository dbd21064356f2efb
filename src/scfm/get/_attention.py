"""Pairs of genes by attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm._checks import entry_of, typed
from scfm._keys import ATTENTION, GROUPS
from scfm._text import some

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

__all__ = ["attention_df"]


@typed
def attention_df(
    adata: AnnData, genes: str | Sequence[str] | None = None, *, group: str | None = None, key: str = ATTENTION
) -> pd.DataFrame:
    """Pairs of genes that :func:`scfm.tl.attention` found, heaviest first.

    Parameters
    ----------
    adata
        With its result.
    genes
        Queries, by their names in ``var_names``; all by default.
    group
        Group of ``groupby``; by default all cells together.
    key
        ``key_added`` of :func:`scfm.tl.attention`.

    Returns
    -------
    A row for each pair with the columns ``query``, ``key``, ``weight`` (float32) and ``n_cells``.

    Raises
    ------
    KeyError
        If there is no such result, it has no groups, ``group`` is not one of them, or a gene has no pairs.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()[:50].copy()
    >>> scfm.tl.attention(adata, "scfm-mini", genes=["LYZ", "NKG7"], n_top=5)
    >>> len(scfm.get.attention_df(adata))
    10
    """
    found = _of_all(adata, key) if group is None else _of_group(adata, group, key)
    if genes is not None:
        wanted = [genes] if isinstance(genes, str) else list(genes)
        missing = [gene for gene in wanted if gene not in set(found["query"])]
        if missing:
            msg = f"There is no attention of {some(missing)} in {key!r}: they were no genes= of scfm.tl.attention, or no cell expresses them."
            raise KeyError(msg)
        found = found[found["query"].isin(wanted)]
    return found.sort_values("weight", ascending=False, kind="stable", ignore_index=True)


def _of_all(adata: AnnData, key: str) -> pd.DataFrame:
    weights = entry_of(adata.varp, key, "varp").tocoo()
    counts = entry_of(adata.varp, f"{key}_n", "varp").tocsr()
    query, to = (adata.var_names[at].astype(str) for at in (weights.row, weights.col))
    n_cells = (
        np.asarray(counts[weights.row, weights.col]).ravel() if weights.nnz else weights.data
    )  # scipy: sparse if empty
    return pd.DataFrame({"query": query, "key": to, "weight": weights.data, "n_cells": n_cells})


def _of_group(adata: AnnData, group: str, key: str) -> pd.DataFrame:
    stored = entry_of(adata.uns, key, "uns")
    if GROUPS not in stored:
        msg = f"uns[{key!r}] has no groups: call scfm.tl.attention with groupby=."
        raise KeyError(msg)
    table = stored[GROUPS]
    if group not in set(table["group"]):
        msg = f"group={group!r} is not one of the groups of {key!r}; found {sorted(set(table['group']))}."
        raise KeyError(msg)
    return table[table["group"] == group].drop(columns="group")
