"""Which classes are taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._checks import typed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scfm.metrics import ClassificationReport

__all__ = ["confusion"]

MOST_NUMBERS = 15
"""Classes up to which there is room for a number in each square."""


@typed
def confusion(
    report: ClassificationReport,
    *,
    normalize: bool = True,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | bool | None = None,
) -> Axes | None:
    """Plot the confusion matrix of a classifier: true classes in rows, predicted ones in columns.

    Parameters
    ----------
    report
        From :func:`scfm.metrics.classification_report`, whose order of the classes is kept.
    normalize
        Show shares of the cells of each true class rather than numbers of cells. Rows of classes without cells stay blank.
    ax
        Where to draw; a new figure by default.
    show, save
        As for scanpy's plots.

    Returns
    -------
    The axes with ``show=False``, else ``None``.

    Examples
    --------
    >>> import scfm
    >>> report = scfm.metrics.classification_report(["B", "B", "T", "T"], ["B", "T", "T", "T"])
    >>> axes = scfm.pl.confusion(report, show=False)
    """
    import matplotlib.pyplot as plt
    from scanpy.plotting._utils import savefig_or_show

    table = report.confusion
    values = table.to_numpy(dtype=float)
    if normalize:
        sizes = values.sum(axis=1, keepdims=True)
        values = np.divide(values, sizes, out=np.full_like(values, np.nan), where=sizes > 0)
    if ax is None:
        _, ax = plt.subplots(figsize=(2.5 + 0.35 * table.shape[1], 2 + 0.35 * len(table)))
    image = ax.imshow(values, cmap="Blues", vmin=0, vmax=1 if normalize else None)
    ax.set_xticks(np.arange(table.shape[1]), table.columns.tolist(), rotation=90, fontsize=8)
    ax.set_yticks(np.arange(len(table)), table.index.tolist(), fontsize=8)
    ax.set(xlabel="predicted", ylabel="true")
    if len(table) <= MOST_NUMBERS:
        _write_numbers(ax, values, "{:.2f}" if normalize else "{:.0f}")
    figure: Any = ax.get_figure()
    figure.colorbar(image, ax=ax, label="share of the class" if normalize else "cells", shrink=0.6)
    savefig_or_show("confusion", show=show, save=save)
    return ax if show is False else None


def _write_numbers(ax: Axes, values: Any, form: str) -> None:
    """Write a number into each square that is not empty, white on dark ones."""
    dark = np.nanmax(values) / 2
    for row, column in zip(*np.nonzero(np.nan_to_num(values)), strict=True):
        value = values[row, column]
        colour = "white" if value > dark else "black"
        ax.text(column, row, form.format(value), ha="center", va="center", fontsize=7, color=colour)
