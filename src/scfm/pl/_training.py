"""How a training went."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._checks import typed
from scfm._text import some

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

__all__ = ["training"]

PART = re.compile(r"(?:^|[/_])(train|validation)(?:[/_]|$)")
OF_THE_RUN = re.compile(r"^(lr\b|learning_rate)|per_second")
"""Names of what is set or measured of the run, on scales of its own."""


@typed
def training(
    history: Mapping[str, Any],
    names: Sequence[str] | None = None,
    *,
    show: bool | None = None,
    save: str | bool | None = None,
) -> list[Axes] | None:
    """Plot the losses of a training in one panel, and other figures in a second one; validation is dashed.

    Parameters
    ----------
    history
        Curves by name: ``model.history`` of a model of scvi-tools' kind, tables with one column and the epoch as index; or
        ``model.card.training["curves"]`` of :func:`scfm.train.pretrain`, lists of step and value. Losses are those with
        ``loss`` in their name, and the terms ``train/<objective>`` and ``validation/<objective>``.
    names
        Curves to show. By default all but the learning rate and the speed; of a curve that there is by epoch and by step,
        the first.
    show, save
        As for scanpy's plots.

    Returns
    -------
    The axes of the panels with ``show=False``, else ``None``.

    Raises
    ------
    ValueError
        If there is no curve, one of ``names`` is not there, or a curve is neither a table with one column nor a list of pairs
        of numbers.

    Examples
    --------
    >>> import scfm
    >>> history = scfm.model.load("scfm-mini").card.training["curves"]
    >>> losses, others = scfm.pl.training(history, show=False)
    """
    import matplotlib.pyplot as plt
    from scanpy.plotting._utils import savefig_or_show

    if names is None:
        names = [name for name in history if not OF_THE_RUN.search(name) and _by_epoch(name) not in history]
    missing = [name for name in names if name not in history]
    if missing or not names:
        what = f"names={some(map(repr, missing))} is not in history" if missing else "history or names hold no curve"
        msg = f"{what}; found {some(map(repr, history), 20) or 'nothing'}."
        raise ValueError(msg)
    curves = {name: _curve(name, history[name]) for name in names}
    losses = [name for name in names if _is_loss(name)]
    panels = [panel for panel in (losses, [name for name in names if name not in losses]) if panel]
    _, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.5), squeeze=False, layout="constrained")
    for ax, panel in zip(axes[0], panels, strict=True):
        _draw(ax, {name: curves[name] for name in panel})
        ax.set_ylabel("loss" if panel is losses else "")
    savefig_or_show("training", show=show, save=save)
    return list(axes[0]) if show is False else None


def _by_epoch(name: str) -> str:
    """What a curve by step is called by epoch; an empty name, which is none, for others."""
    return f"{name.removesuffix('_step')}_epoch" if name.endswith("_step") else ""


def _is_loss(name: str) -> bool:
    return "loss" in name or re.fullmatch(r"(train|validation)/[^/]+", name) is not None


def _curve(name: str, values: Any) -> pd.Series:
    """Values by step or epoch, the name of the index."""
    try:
        if isinstance(values, pd.DataFrame):
            (column,) = values.columns
            return values[column].astype(float)
        at, found = np.asarray(values, dtype=float).T
        return pd.Series(found, index=pd.Index(at, name="step"))
    except (TypeError, ValueError) as error:
        msg = f"history[{name!r}] is neither a table with one column nor a list of [step, value]; got {type(values).__name__}."
        raise ValueError(msg) from error


def _draw(ax: Axes, curves: dict[str, pd.Series]) -> None:
    """Draw curves; those of one figure, for training and for validation, have one colour."""
    figures = list(dict.fromkeys(PART.sub("", name).removesuffix("_epoch") for name in curves))
    for name, curve in curves.items():
        colour = f"C{figures.index(PART.sub('', name).removesuffix('_epoch'))}"
        part = PART.search(name)
        validation = part is not None and part[1] == "validation"
        marker = "o" if validation or len(curve) == 1 else None
        ax.plot(curve.index, curve, "--" if validation else "-", color=colour, marker=marker, ms=3, lw=1.2, label=name)
    ax.set_xlabel(
        " or ".join(
            sorted({"epoch" if curve.index.name is None else str(curve.index.name) for curve in curves.values()})
        )
    )
    ax.legend(fontsize=8, frameon=False)
