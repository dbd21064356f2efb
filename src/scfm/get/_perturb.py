"""Effects of perturbations."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from scfm._checks import typed
from scfm._keys import PERTURB, STATS, stored_under
from scfm.metrics.shifts import effects_on_genes, embeddings_of, shifts_of

__all__ = ["perturb_df", "perturbed"]

Table = Literal["genes", "effects", "raw"]


@typed
def perturb_df(
    adata: AnnData,
    key: str = PERTURB,
    table: Table = "genes",
    *,
    state: str = "goal",
    group: str | None = None,
    gene: str | None = None,
) -> pd.DataFrame:
    """Effects of perturbations as a table.

    Parameters
    ----------
    adata
        With the results of :func:`scfm.tl.perturb`.
    key
        ``key_added`` of :func:`scfm.tl.perturb`.
    table
        ``"genes"``: what :func:`scfm.tl.perturb_stats` stored, a row for each gene (or group of genes). ``"effects"``: what
        ``gene_effects=True`` measured, a row for each gene and each other gene that it affects. ``"raw"``: a row for each
        gene of each cell.
    state
        For ``"raw"``, with states: ``"goal"``, ``"start"``, ``"alternative_1"`` and so on.
    group
        For ``"genes"``: rows of one group only.
    gene
        Rows of one gene (or group of genes) only.

    Returns
    -------
    The table. ``"effects"`` has the columns ``names``, ``affected``, ``effect`` (mean over cells of ``1 − cos``), ``sd`` and
    ``n_cells``, the largest effects of each gene first; ``"raw"`` has ``cell``, ``names`` and ``effect``.

    Raises
    ------
    KeyError
        If there is no such result, state, group or gene.
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
    if table == "raw":
        shifts = shifts_of(adata, key, state)
        names = shifts.names.astype(str)[shifts.genes]
        found = pd.DataFrame({"cell": adata.obs_names[shifts.cells], "names": names, "effect": shifts.values})
        return _of_gene(found, gene)
    if table == "effects":
        found = effects_on_genes(adata, key, gene)
        place = found.groupby("names", sort=False).ngroup()
        return found.iloc[np.lexsort((-found["effect"], place))].reset_index(drop=True)
    tested = stored_under(adata.uns, key).get(STATS)
    if tested is None:
        msg = f"uns[{key!r}] holds no statistics; call scfm.tl.perturb_stats(adata, {key!r}) first."
        raise KeyError(msg)
    found = _of_gene(tested, gene)
    if group is None:
        return found.copy()
    known = list(found["group"].cat.categories)
    if group not in known:
        msg = f"{group!r} is no group of uns[{key!r}]; found {known}."
        raise KeyError(msg)
    return found[found["group"] == group].drop(columns="group")


def _of_gene(table: pd.DataFrame, gene: str | None) -> pd.DataFrame:
    if gene is None:
        return table
    rows = table[table["names"] == gene]
    if rows.empty:
        msg = f"gene={gene!r} is not in the table; its names are like {table['names'].head(3).tolist()}."
        raise KeyError(msg)
    return rows


@typed
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
    AnnData of (cell, perturbation) × features: ``X`` are the embeddings, float32, of the cells that are still in ``adata``,
    found by their names; ``obs`` are those of the cells with
    ``obs["perturbation"]``, which is ``"control"`` for the cells as they are.

    Raises
    ------
    KeyError
        If there are no such embeddings, or none of their cells is left.
    ValueError
        If cells were moved, and their names repeat.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()[:5].copy()
    >>> scfm.tl.perturb(adata, "scfm-mini", genes=["CD74", "HLA-DRA"], embeddings=True)
    >>> scfm.get.perturbed(adata).obs["perturbation"].cat.categories.tolist()
    ['CD74', 'HLA-DRA', 'control']
    """
    vectors, cells, names = embeddings_of(adata, key)
    obs = adata.obs.iloc[cells].copy()
    obs["perturbation"] = pd.Categorical(names)
    obs.index = obs.index.astype(str) + "_" + obs["perturbation"].astype(str)
    return AnnData(vectors, obs=obs)
