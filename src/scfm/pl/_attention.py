"""Attention between genes: as a heatmap, or the heaviest pairs as a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scfm._checks import check_least, typed
from scfm._keys import ATTENTION
from scfm.get import attention_df

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

__all__ = ["attention"]


@typed
def attention(
    adata: AnnData,
    genes: str | Sequence[str] | None = None,
    *,
    kind: Literal["heatmap", "graph"] = "heatmap",
    group: str | None = None,
    n_genes: int = 20,
    n_edges: int = 40,
    key: str = ATTENTION,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | bool | None = None,
) -> Axes | None:
    """Plot what :func:`scfm.tl.attention` found.

    Parameters
    ----------
    adata
        With its result.
    genes
        Queries to show; by default those of the heaviest pairs.
    kind
        ``"heatmap"``: queries in rows and their heaviest keys in columns. ``"graph"``: an arrow from each query to its key,
        the wider the heavier, drawn by networkx.
    group
        Group of ``groupby``; by default all cells together.
    n_genes
        Of the heatmap: queries, unless ``genes`` says which, and keys.
    n_edges
        Of the graph: pairs.
    key
        ``key_added`` of :func:`scfm.tl.attention`.
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
        As :func:`scfm.get.attention_df`.
    ValueError
        If there is no pair of two genes.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()[:50].copy()
    >>> scfm.tl.attention(adata, "scfm-mini", genes=["LYZ", "NKG7", "CD74"])
    >>> axes = scfm.pl.attention(adata, kind="graph", show=False)
    """
    import matplotlib.pyplot as plt
    from scanpy.plotting._utils import savefig_or_show

    check_least("n_genes", n_genes)
    check_least("n_edges", n_edges)
    pairs = attention_df(adata, genes, group=group, key=key)
    pairs = pairs[pairs["query"] != pairs["key"]]
    if pairs.empty:
        msg = f"{key!r} holds no pair of two genes; call scfm.tl.attention with a higher n_top=."
        raise ValueError(msg)
    if kind == "heatmap":
        shown = _matrix(pairs, None if genes is None else list(pairs["query"].unique()), n_genes)
        size = 1.5 + 0.25 * shown.shape[1], 1.2 + 0.22 * len(shown)
    else:
        size = 6, 6
    if ax is None:
        _, ax = plt.subplots(figsize=size)
    if kind == "heatmap":
        _heatmap(ax, shown)
    else:
        _graph(ax, pairs.head(n_edges))
    savefig_or_show("attention", show=show, save=save)
    return ax if show is False else None


def _matrix(pairs: pd.DataFrame, queries: list[str] | None, n_genes: int) -> pd.DataFrame:
    """Weights of queries on the keys to which they attend most in sum; NaN for pairs that were not kept."""
    rows = pairs["query"].unique()[:n_genes].tolist() if queries is None else queries
    wide = pairs[pairs["query"].isin(rows)].pivot_table(index="query", columns="key", values="weight", observed=True)
    heaviest = wide.sum().sort_values(ascending=False, kind="stable").index[:n_genes]
    return wide.loc[rows, heaviest]


def _heatmap(ax: Axes, shown: pd.DataFrame) -> None:
    image = ax.imshow(shown.to_numpy(), aspect="auto", cmap="viridis", vmin=0)
    ax.set_xticks(np.arange(shown.shape[1]), shown.columns.tolist(), rotation=90, fontsize=8)
    ax.set_yticks(np.arange(len(shown)), shown.index.tolist(), fontsize=8)
    ax.set(xlabel="attended to", ylabel="attends")
    figure: Any = ax.get_figure()
    figure.colorbar(image, ax=ax, label="mean attention weight", shrink=0.6)


def _graph(ax: Axes, pairs: pd.DataFrame) -> None:
    import networkx as nx

    graph = nx.from_pandas_edgelist(pairs, "query", "key", "weight", create_using=nx.DiGraph)
    weights = np.array([weight for *_, weight in graph.edges(data="weight")])
    place = nx.spring_layout(graph, seed=0, k=1.5 / np.sqrt(len(graph)))
    nx.draw_networkx_edges(
        graph, place, ax=ax, width=(0.3 + 2.7 * weights / weights.max()).tolist(), edge_color="#bbbbbb"
    )
    nx.draw_networkx_nodes(graph, place, ax=ax, node_size=30, node_color="#4477aa")
    nx.draw_networkx_labels(graph, place, ax=ax, font_size=8, verticalalignment="bottom")
    ax.set_axis_off()
