"""Embeddings of genes, and ranked genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scfm._checks import check_least, entry_of, typed
from scfm._keys import MARKER_GENES, PARAMS, provenance_keys, stored_under
from scfm.metrics.ranking import COLUMNS, table_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["gene_adata", "marker_genes_df"]


@typed
def gene_adata(adata: AnnData, key: str, group: str | None = None) -> AnnData:
    """Embeddings of genes as an AnnData of genes × features, for neighbours, clusters and a UMAP of genes.

    Parameters
    ----------
    adata
        With the result of ``scfm.tl.embed(adata, model, pooling="gene")``.
    key
        Key of the embeddings in ``varm``.
    group
        Of embeddings that were averaged by group (``groupby=``): the group.

    Returns
    -------
    A new AnnData. ``X``: float32, shape ``(n_genes, n_features)``, of the genes that have an embedding. ``obs``: ``var`` of
    these genes. ``uns``: how the embeddings were made.

    Raises
    ------
    KeyError
        If ``key`` is not in ``varm``, or ``group`` is not one of the groups.
    TypeError
        If an argument has the wrong type.
    ValueError
        If the embeddings are by group and ``group`` is missing, or the other way round.

    Examples
    --------
    >>> import scanpy as sc, scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.tl.embed(adata, "scfm-mini", pooling="gene")
    >>> genes = scfm.get.gene_adata(adata, "X_scfm_mini")
    >>> sc.pp.neighbors(genes, use_rep="X")
    >>> "LYZ" in genes.obs_names
    True
    """
    values = np.asarray(entry_of(adata.varm, key, "varm"))
    uns = {name: adata.uns[name] for name in provenance_keys(key) if name in adata.uns}
    if (values.ndim == 3) != (group is not None):
        how = "one embedding a gene: leave group out" if values.ndim < 3 else "embeddings by group: give group="
        msg = f"varm[{key!r}] holds {how}."
        raise ValueError(msg)
    if group is not None:
        groups = [str(name) for made in uns.values() for name in made[PARAMS]["groups"]]
        if group not in groups:
            msg = f"group={group!r} is not one of the groups of varm[{key!r}]; found {groups}."
            raise KeyError(msg)
        values = values[:, groups.index(group)]
    known = ~np.isnan(values).any(axis=1)
    features = pd.DataFrame(index=pd.RangeIndex(values.shape[1]).astype(str))
    return AnnData(values[known], obs=adata.var[known].copy(), var=features, uns=uns)


@typed
def marker_genes_df(
    adata: AnnData,
    group: str | Sequence[str] | None = None,
    *,
    key: str = MARKER_GENES,
    n_genes: int | None = None,
    gene_symbols: str | None = None,
) -> pd.DataFrame:
    """Ranked genes that :func:`scfm.tl.marker_genes` stored, as a table.

    Parameters
    ----------
    adata
        With the result in ``uns``.
    group
        Group, or several; all by default.
    key
        ``key_added`` of :func:`scfm.tl.marker_genes`.
    n_genes
        Genes of each group; by default all that have a score.
    gene_symbols
        Column of ``var`` to add.

    Returns
    -------
    A row for each gene that has a score, and each group, highest score first, with the columns ``group`` (unless one group was asked for by
    its name), ``names``, ``scores``, ``logfoldchanges``, ``means``, ``pct_nz_group`` and ``gene_symbols``.

    Raises
    ------
    KeyError
        If there is no such result, it has no groups, or ``group`` is not one of them.
    ValueError
        If ``group`` is an empty list, or ``n_genes`` is below 1.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.tl.marker_genes(adata, "scfm-mini", groupby="bulk_labels", n_cells=5, genes=["NKG7", "CD79A", "LYZ"])
    >>> len(scfm.get.marker_genes_df(adata, n_genes=1))
    10
    """
    if n_genes is not None:
        check_least("n_genes", n_genes)
    result = stored_under(adata.uns, key)
    if not set(COLUMNS) <= set(result):
        msg = f"uns[{key!r}] holds no ranked genes; call scfm.tl.marker_genes(adata, model, groupby=...) first."
        raise KeyError(msg)
    known = list(result["names"].dtype.names)
    groups = known if group is None else [group] if isinstance(group, str) else list(group)
    unknown = [name for name in groups if name not in known]
    if unknown:
        msg = f"{unknown[0]!r} is not a group of uns[{key!r}]; found {known}."
        raise KeyError(msg)
    if not groups:
        msg = f"group is an empty list; found the groups {known}."
        raise ValueError(msg)
    table = table_of(result, groups, n_genes)
    if gene_symbols is not None and gene_symbols not in adata.var:
        msg = f"gene_symbols={gene_symbols!r} is not a column of var; found {list(adata.var.columns)}."
        raise KeyError(msg)
    if gene_symbols is not None:
        table = table.join(adata.var[gene_symbols], on="names")
    return table.drop(columns="group") if isinstance(group, str) else table
