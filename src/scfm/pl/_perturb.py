"""Effects of perturbed genes: a volcano, or the largest ones as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfm._checks import check_least, typed
from scfm._keys import PERTURB
from scfm.get import perturb_df

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

__all__ = ["perturb"]

Kind = Literal["volcano", "bar"]

BLUE, RED, GREY = "#4477aa", "#cc6677", "#bbbbbb"
"""Towards a state, away from it, not significant; told apart with every kind of colour vision."""


@typed
def perturb(
    adata: AnnData,
    key: str = PERTURB,
    *,
    kind: Kind = "volcano",
    group: str | None = None,
    n_genes: int = 10,
    alpha: float = 0.05,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | bool | None = None,
) -> Axes | None:
    """Plot what :func:`scfm.tl.perturb_stats` found.

    Parameters
    ----------
    adata
        With its result.
    key
        ``key_added`` of :func:`scfm.tl.perturb`.
    kind
        ``"volcano"``: effect and adjusted p-value of each gene. ``"bar"``: the genes with the largest effects, with the
        standard deviation over cells.
    group
        Group of ``groupby``; may be left out where there is one.
    n_genes
        Genes that are named: those with the smallest p-values, or of each direction those with the largest effects.
    alpha
        Adjusted p-value below which genes are coloured.
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
        As :func:`scfm.get.perturb_df`.
    ValueError
        If there are several groups and none is chosen, ``kind`` is not known, or a volcano is asked of a test without
        p-values.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()[:20].copy()
    >>> scfm.tl.perturb(adata, "scfm-mini", genes=["NKG7", "CD74", "HLA-DRA"])
    >>> scfm.tl.perturb_stats(adata)
    >>> axes = scfm.pl.perturb(adata, kind="bar", show=False)
    """
    import matplotlib.pyplot as plt
    from scanpy.plotting._utils import savefig_or_show

    check_least("n_genes", n_genes)
    table = perturb_df(adata, key)
    groups = list(table["group"].cat.categories)
    if group is None and len(groups) > 1:
        msg = f"uns[{key!r}] holds the groups {groups}; choose one with group=."
        raise ValueError(msg)
    table = perturb_df(adata, key, group=groups[0] if group is None else group)
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 4) if kind == "volcano" else (4, 0.4 + 0.22 * min(2 * n_genes, len(table))))
    draw = _volcano if kind == "volcano" else _bars
    draw(ax, table, n_genes, alpha)
    savefig_or_show("perturb", show=show, save=save)
    return ax if show is False else None


def _colours(table: pd.DataFrame, alpha: float) -> Any:
    significant = table["pvals_adj"] < alpha if "pvals_adj" in table else table["impact"]
    return np.where(~significant, GREY, np.where(table["effect"] > 0, BLUE, RED))


def _volcano(ax: Axes, table: pd.DataFrame, n_genes: int, alpha: float) -> None:
    if "pvals" not in table:
        msg = "test='mixture' gives no p-values for a volcano; use kind='bar'."
        raise ValueError(msg)
    table = table[table["pvals"].notna()]
    height = -np.log10(np.maximum(table["pvals_adj"].to_numpy(), np.finfo(float).tiny))
    ax.scatter(table["effect"], height, s=8, c=_colours(table, alpha), linewidths=0)
    ax.axhline(-np.log10(alpha), color=GREY, linewidth=0.8, linestyle="--")
    ax.set(xlabel="mean effect", ylabel="−log10 adjusted p-value")
    ax.locator_params(axis="x", nbins=5)  # small effects have long numbers
    named = table.head(n_genes)
    label_points(ax, named["effect"].to_numpy(), height[:n_genes], named["names"].tolist())


def _bars(ax: Axes, table: pd.DataFrame, n_genes: int, alpha: float) -> None:
    table = table.sort_values("effect", ascending=False)
    up, down = table[table["effect"] > 0].head(n_genes), table[table["effect"] <= 0].tail(n_genes)
    table = pd.concat([up, down])[::-1]
    ax.barh(
        table["names"], table["effect"], xerr=table["sd"], color=_colours(table, alpha), error_kw={"linewidth": 0.8}
    )
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set(xlabel="mean effect (± sd over cells)")


def label_points(ax: Axes, x: Any, y: Any, names: list[str]) -> None:
    """Write names beside points, each at the first place around its point that is inside the axes and where nothing is written yet."""
    figure = ax.get_figure()
    assert figure is not None
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    taken: list[Any] = []
    for at_x, at_y, name in zip(x, y, names, strict=True):
        for distance in (4, 12, 22, 34):
            for right, up in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
                text = ax.annotate(
                    name,
                    (at_x, at_y),
                    xytext=(right * distance, up * distance),
                    textcoords="offset points",
                    fontsize=8,
                    ha="left" if right > 0 else "right",
                    arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": GREY} if distance > 4 else None,
                )
                box = text.get_window_extent(renderer)
                inside = ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max)
                if inside and not any(box.overlaps(other) for other in taken):
                    break
                text.remove()
            else:
                continue
            taken.append(box)
            break
