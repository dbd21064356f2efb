"""Results as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from scfm._keys import MARKER_GENES, PERTURB, STATS
from scfm.metrics.shifts import shifts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["marker_genes_df", "perturb_df", "perturbed", "table_of"]

COLUMNS = ("names", "scores", "means", "pts")


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
        Genes of each group; all by default.
    gene_symbols
        Column of ``var`` to add.

    Returns
    -------
    A row for each gene of each group, highest score first, with the columns ``group`` (unless one group was asked for by
    its name), ``names``, ``scores``, ``means``, ``pts`` and ``gene_symbols``.

    Raises
    ------
    KeyError
        If there is no such result, it has no groups, or ``group`` is none of them.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.tl.marker_genes(adata, "scfm-mini", groupby="bulk_labels", n_cells=1, genes=["NKG7", "CD79A", "LYZ"])
    >>> len(scfm.get.marker_genes_df(adata, n_genes=1))
    10
    """
    if not isinstance(adata, AnnData):
        msg = f"marker_genes_df reads an AnnData, got {type(adata).__name__}; of a MuData pass mdata[modality]."
        raise TypeError(msg)
    result = adata.uns.get(key, {})
    if not set(COLUMNS) <= set(result):
        msg = f"uns[{key!r}] holds no ranked genes; call scfm.tl.marker_genes(adata, model, groupby=...) first."
        raise KeyError(msg)
    known = list(result["names"].dtype.names)
    groups = known if group is None else [group] if isinstance(group, str) else list(group)
    unknown = [name for name in groups if name not in known]
    if unknown:
        msg = f"{unknown[0]!r} is no group of uns[{key!r}]; found {known}."
        raise KeyError(msg)
    table = table_of(result, groups, n_genes)
    if gene_symbols is not None and gene_symbols not in adata.var:
        msg = f"gene_symbols={gene_symbols!r} is not a column of var; found {list(adata.var.columns)}."
        raise KeyError(msg)
    if gene_symbols is not None:
        table = table.join(adata.var[gene_symbols], on="names")
    return table.drop(columns="group") if isinstance(group, str) else table


def table_of(
    result: Mapping[str, Any], groups: Sequence[str] | None = None, n_genes: int | None = None
) -> pd.DataFrame:
    """Ranked genes of groups, all by default, one below the other."""
    groups = list(result["names"].dtype.names if groups is None else groups)
    tables = [pd.DataFrame({name: result[name][group][:n_genes] for name in COLUMNS}) for group in groups]
    table = pd.concat(tables, ignore_index=True)
    codes = np.repeat(np.arange(len(groups)), [len(part) for part in tables])
    table["group"] = pd.Categorical.from_codes(codes, pd.Index(groups))
    return table[["group", *COLUMNS]]


def perturb_df(
    adata: AnnData,
    key: str = PERTURB,
    table: Literal["genes", "raw"] = "genes",
    *,
    state: str = "goal",
    group: str | None = None,
) -> pd.DataFrame:
    """Effects of perturbations as a table.

    Parameters
    ----------
    adata
        With the results of :func:`scfm.tl.perturb`.
    key
        ``key_added`` of :func:`scfm.tl.perturb`.
    table
        ``"genes"``: what :func:`scfm.tl.perturb_stats` stored, a row for each gene (or group of genes). ``"raw"``: a row for each
        gene of each cell.
    state
        For ``"raw"``, with states: ``"goal"``, ``"start"``, ``"alternative_1"`` and so on.
    group
        For ``"genes"``: rows of one group only.

    Returns
    -------
    The table; for ``"raw"`` with the columns ``cell``, ``names`` and ``effect``.

    Raises
    ------
    KeyError
        If there is no such result, state or group.
    ValueError
        If ``table`` is not known.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()[:5].copy()
    >>> scfm.tl.perturb(adata, "scfm-mini", genes=["CD74", "HLA-DRA"])
    >>> scfm.get.perturb_df(adata, table="raw").columns.tolist()
    ['cell', 'names', 'effect']
    """
    if table not in ("genes", "raw"):
        msg = f"table={table!r} is not known; use 'genes' or 'raw'."
        raise ValueError(msg)
    if table == "raw":
        shifts = shifts_of(adata, key, state)
        names = shifts.names.astype(str)[shifts.genes]
        return pd.DataFrame({"cell": adata.obs_names[shifts.cells], "names": names, "effect": shifts.values})
    found = adata.uns.get(key, {}).get(STATS)
    if found is None:
        msg = f"uns[{key!r}] holds no statistics; call scfm.tl.perturb_stats(adata, {key!r}) first."
        raise KeyError(msg)
    if group is None:
        return found.copy()
    known = list(found["group"].cat.categories)
    if group not in known:
        msg = f"{group!r} is no group of uns[{key!r}]; found {known}."
        raise KeyError(msg)
    return found[found["group"] == group].drop(columns="group")


def perturbed(adata: AnnData, key: str = PERTURB) -> AnnData:
    """Embeddings of perturbed cells, as tools for perturbation data take them.

    Parameters
    ----------
    adata
        With the results of :func:`scfm.tl.perturb` under ``embeddings=True``.
    key
        ``key_added`` of :func:`scfm.tl.perturb`.

    Returns
    -------
    AnnData of (cell, perturbation) × features: ``X`` are the embeddings, float32; ``obs`` are those of the cells with
    ``obs["perturbation"]``, which is ``"control"`` for the cells as they are.

    Raises
    ------
    KeyError
        If there are no such embeddings.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()[:5].copy()
    >>> scfm.tl.perturb(adata, "scfm-mini", genes=["CD74", "HLA-DRA"], embeddings=True)
    >>> scfm.get.perturbed(adata).obs["perturbation"].cat.categories.tolist()
    ['CD74', 'HLA-DRA', 'control']
    """
    stored = adata.uns.get(key, {}).get("embeddings")
    if stored is None:
        msg = (
            f"uns[{key!r}] holds no embeddings; call scfm.tl.perturb(adata, model, genes=[...], embeddings=True) first."
        )
        raise KeyError(msg)
    obs = adata.obs.iloc[np.asarray(stored["cells"])].copy()
    obs["perturbation"] = pd.Categorical(np.asarray(stored["perturbation"]).astype(str))
    obs.index = obs.index.astype(str) + "_" + obs["perturbation"].astype(str)
    return AnnData(np.asarray(stored["X"]), obs=obs)
