"""Curves of a classifier over all thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._checks import typed
from scfm._text import some
from scfm.metrics.curves import AXES, MACRO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from scfm.metrics import ClassificationCurves

__all__ = ["roc"]

MOST_INSIDE = 6
"""Names up to which the legend has room inside the axes."""


@typed
def roc(
    curves: ClassificationCurves,
    classes: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | bool | None = None,
) -> Axes | None:
    """Plot the curves of each class, with their areas, and a band of one standard deviation over folds.

    Parameters
    ----------
    curves
        From :func:`scfm.metrics.roc_curves`, or :func:`scfm.metrics.pr_curves`.
    classes
        Curves to show, ``"macro"`` among them; by default all that there are.
    ax
        Where to draw; a new figure by default.
    show, save
        As for scanpy's plots.

    Returns
    -------
    The axes with ``show=False``, else ``None``.

    Raises
    ------
    ValueError
        If ``classes`` names none, or one that has no curve.

    Examples
    --------
    >>> import scfm
    >>> probabilities = [[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.2, 0.8]]
    >>> curves = scfm.metrics.roc_curves(["B", "B", "T", "T"], probabilities, ["B", "T"])
    >>> axes = scfm.pl.roc(curves, show=False)
    """
    import matplotlib.pyplot as plt
    from scanpy.plotting._utils import savefig_or_show

    there = curves.mean.columns[curves.mean.notna().all()].tolist()
    names = there if classes is None else list(classes)
    other = [name for name in names if name not in there]
    if other or not names:
        msg = f"classes={some(map(repr, other)) or 'nothing'} has no curve; there are {some(map(repr, there), 20)}."
        raise ValueError(msg)
    if ax is None:
        _, ax = plt.subplots(figsize=(4.5, 4))
    colours = plt.get_cmap("tab10" if len(names) <= 10 else "tab20")
    for at, name in enumerate(names):
        colour = "black" if name == MACRO else colours(at % colours.N)
        mean, sd, area = curves.mean[name], curves.sd[name], curves.areas.loc[name]
        spread = "" if np.isnan(area["sd"]) else f" ± {area['sd']:.3f}"
        ax.plot(mean.index, mean, color=colour, linewidth=1.5, label=f"{name} ({area['area']:.3f}{spread})")
        ax.fill_between(
            mean.index, (mean - sd).clip(0), (mean + sd).clip(upper=1), color=colour, alpha=0.15, linewidth=0
        )
    if curves.kind == "roc":
        ax.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8, linestyle="--")
    across, up = AXES[curves.kind]
    ax.set(xlabel=across, ylabel=up, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(names) > MOST_INSIDE else {}
    ax.legend(fontsize=8, frameon=False, title="area", title_fontsize=8, **beside)
    savefig_or_show("roc", show=show, save=save)
    return ax if show is False else None
