"""Genes whose states depend most, and least, on the cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm._checks import check_least, entry_of, typed
from scfm._keys import GENE_CONTEXT
from scfm.pl._perturb import BLUE, GREY, RED, label_points

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

__all__ = ["gene_context"]


@typed
def gene_context(
    adata: AnnData,
    key: str = GENE_CONTEXT,
    *,
    n_genes: int = 8,
    least: int = 3,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | bool | None = None,
) -> Axes | None:
    """Plot the variance of the states of genes against the number of cells or groups that express them.

    Parameters
    ----------
    adata
        With the result of :func:`scfm.tl.gene_context`.
    key
        Its ``key_added``.
    n_genes
        Genes that are named at each end: those whose states vary most, and least.
    least
        Cells or groups in which a gene is expressed at least; others are not shown.
    ax
        Where to draw; a new figure by default.
    show, save
        As for scanpy's plots.

    Returns
    -------
    The axes with ``show=False``, else ``None``.

    Raises
    ------
    KeyError
        If there is no such result.
    ValueError
        If no gene is expressed in as many cells or groups.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.tl.gene_context(adata, "scfm-mini")
    >>> axes = scfm.pl.gene_context(adata, show=False)
    """
    import matplotlib.pyplot as plt
    from scanpy.plotting._utils import savefig_or_show

    check_least("n_genes", n_genes)
    table = entry_of(adata.varm, key, "varm")
    table = table[(table["n"] >= least) & table["variance"].notna()].sort_values("variance", kind="stable")
    if table.empty:
        msg = f"No gene of varm[{key!r}] is expressed in {least} cells or groups; lower least=."
        raise ValueError(msg)
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 4))
    named = pd.concat([table.head(n_genes), table.tail(n_genes)])
    named = named[~named.index.duplicated()]
    at = np.arange(len(table))
    colours = np.where(at < n_genes, BLUE, np.where(at >= len(table) - n_genes, RED, GREY))
    ax.scatter(table["n"], table["variance"], s=8, c=colours, linewidths=0)
    ax.set(xlabel="cells or groups that express the gene", ylabel="variance of its states")
    ax.set_xscale("log")
    label_points(ax, named["n"].to_numpy(), named["variance"].to_numpy(), named.index.astype(str).tolist())
    savefig_or_show("gene_context", show=show, save=save)
    return ax if show is False else None
