"""Curves over all thresholds of a class's probability: ROC, and precision against recall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfm._checks import typed
from scfm.metrics.predictions import check_classes, class_codes, fold_codes, probabilities_of, texts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["ClassificationCurves", "pr_curves", "roc_curves"]

N_POINTS = 100
MACRO = "macro"
AXES = {"roc": ("false positive rate", "true positive rate"), "pr": ("recall", "precision")}


@dataclass(frozen=True, eq=False)
class ClassificationCurves:
    """Curves of classes, each against all others, by :func:`roc_curves` or :func:`pr_curves`.

    Parameters
    ----------
    kind
        ``"roc"`` or ``"pr"``.
    mean
        Curves: a column for each class and ``"macro"``, or for the second of two classes alone; rows are 100 points from 0 to
        1 of the false positive rate, or of recall, the index. With folds their mean. NaN for a class that has no curve.
    sd
        Standard deviation of the curves over folds, in the same form; NaN with a single one.
    areas
        A row for each curve: ``area``, its ``sd`` over folds, ``n_cells`` of the class and ``n_folds`` with a curve.
    """

    kind: Literal["roc", "pr"]
    mean: pd.DataFrame
    sd: pd.DataFrame
    areas: pd.DataFrame


@typed
def roc_curves(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str], *, folds: ArrayLike | None = None
) -> ClassificationCurves:
    """Receiver operating characteristic of each class against all others, and of their mean.

    Curves are :func:`sklearn.metrics.roc_curve`, interpolated on 100 false positive rates, from the origin. Areas are those of
    the curves themselves (:func:`sklearn.metrics.roc_auc_score`).

    Folds are averaged with the number of their cells as weights, both curves and areas. Geneformer's evaluation, for two
    classes, also takes 100 points, but weights a fold by the number of points of its curve, which depends on how many
    different probabilities it has, and gives the area of the mean curve. The standard deviation has the same weights w,
    sqrt(sum of w (x − mean)² / (1 − sum of w²)), which for folds of one size is that of a sample. In a fold in which a class
    has no cell, or no other cell, it has no curve, and the macro curve is the mean of the others.

    Parameters
    ----------
    labels
        True class of each cell; cells where it is missing (NaN) are left out.
    probabilities
        Of the classes, ``(n_cells, n_classes)``; rows sum to 1.
    classes
        Name of each column.
    folds
        Number of the fold in which each cell was predicted. Without them the cells are taken together.

    Returns
    -------
    Curves and areas of all classes, the last of them ``"macro"``; of two classes, of the second alone.

    Raises
    ------
    ValueError
        If arguments are not of as many cells or classes, a label is not among ``classes``, one is called ``"macro"``, no class
        has a curve, ``probabilities`` are none, or ``folds`` are not whole numbers.

    Examples
    --------
    >>> import scfm
    >>> probabilities = [[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.2, 0.8]]
    >>> scfm.metrics.roc_curves(["B", "B", "T", "T"], probabilities, ["B", "T"]).areas["area"].to_dict()
    {'T': 0.75}
    """
    return _curves("roc", labels, probabilities, classes, folds)


@typed
def pr_curves(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str], *, folds: ArrayLike | None = None
) -> ClassificationCurves:
    """Precision against recall of each class against all others, and their mean.

    Curves are :func:`sklearn.metrics.precision_recall_curve` at 100 recalls: the precision at the highest threshold that
    reaches the recall, without interpolation, which would be too good. Areas are
    :func:`sklearn.metrics.average_precision_score`. By chance the area is the share of the class.

    Parameters
    ----------
    labels, probabilities, classes, folds
        As for :func:`roc_curves`, as are means over folds.

    Returns
    -------
    As :func:`roc_curves`.

    Raises
    ------
    ValueError
        As :func:`roc_curves`.

    Examples
    --------
    >>> import scfm
    >>> probabilities = [[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.2, 0.8]]
    >>> scfm.metrics.pr_curves(["B", "B", "T", "T"], probabilities, ["B", "T"]).areas["area"].round(3).to_dict()
    {'T': 0.833}
    """
    return _curves("pr", labels, probabilities, classes, folds)


def _curves(
    kind: Literal["roc", "pr"],
    labels: ArrayLike,
    probabilities: ArrayLike,
    classes: Sequence[str],
    folds: ArrayLike | None,
) -> ClassificationCurves:
    check_classes(classes)
    if MACRO in classes:
        msg = f"classes holds {MACRO!r}, the name of the mean curve; rename the class."
        raise ValueError(msg)
    true = class_codes(texts_of(labels, "labels"), classes, "labels")
    shares, fold = probabilities_of(probabilities, len(true), len(classes)), fold_codes(folds, len(true))
    kept = true >= 0
    true, shares, fold = true[kept], shares[kept], fold[kept]
    shown = list(range(len(classes))) if len(classes) > 2 else [1]
    sizes = np.bincount(true, minlength=len(classes))[shown]
    numbers, n_of_fold = np.unique(fold, return_counts=True)
    curves = np.stack(
        [_of_fold(kind, true[fold == one], shares[fold == one], shown) for one in numbers]
        or [np.full((len(shown), N_POINTS + 1), np.nan)]
    )
    if np.isnan(curves).all():
        msg = f"labels: no class has both cells and others{' in a fold' if folds is not None else ''}, so there is no curve."
        raise ValueError(msg)
    names = [classes[code] for code in shown]
    if len(classes) > 2:
        alike = np.moveaxis(curves, 1, 0)
        curves = np.concatenate([curves, _average(alike, np.ones(len(alike)))[0][:, None]], axis=1)
        names, sizes = [*names, MACRO], np.append(sizes, len(true))
    mean, sd = _average(curves, n_of_fold)
    index = pd.Index(np.linspace(0, 1, N_POINTS), name=AXES[kind][0])
    return ClassificationCurves(
        kind=kind,
        mean=pd.DataFrame(mean[:, 1:].T, index=index, columns=names),
        sd=pd.DataFrame(sd[:, 1:].T, index=index, columns=names),
        areas=pd.DataFrame(
            {
                "area": mean[:, 0],
                "sd": sd[:, 0],
                "n_cells": sizes,
                "n_folds": (~np.isnan(curves[:, :, 0])).sum(axis=0),
            },
            index=pd.Index(names, name="class"),
        ),
    )


def _of_fold(kind: str, true: NDArray[np.int64], shares: NDArray[np.float64], shown: list[int]) -> NDArray[np.float64]:
    """Area and curve of each class, ``(n_classes, 1 + 100)``; NaN without cells of the class, or of others."""
    found = np.full((len(shown), N_POINTS + 1), np.nan)
    for at, code in enumerate(shown):
        positive = true == code
        if positive.any() and not positive.all():
            found[at] = (_roc if kind == "roc" else _pr)(positive, shares[:, code])
    return found


def _roc(positive: NDArray[np.bool_], share: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.metrics import roc_auc_score, roc_curve

    false, true, _ = roc_curve(positive, share)
    curve = np.interp(np.linspace(0, 1, N_POINTS), false, true)
    curve[0] = 0
    return np.append(roc_auc_score(positive, share), curve)


def _pr(positive: NDArray[np.bool_], share: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.metrics import average_precision_score, precision_recall_curve

    precision, recall, _ = precision_recall_curve(positive, share)
    # from the highest threshold on; at recall 0, whose precision is only defined, that of the first cell of the class
    wanted = np.maximum(np.linspace(0, 1, N_POINTS), 0.5 / len(positive)) - 1e-12
    return np.append(average_precision_score(positive, share), precision[::-1][np.searchsorted(recall[::-1], wanted)])


def _average(values: NDArray[np.float64], weights: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted mean and standard deviation over the first axis, of what is not NaN."""
    there = ~np.isnan(values)
    shares = there * weights.reshape(-1, *[1] * (values.ndim - 1))
    with np.errstate(invalid="ignore"):
        shares = shares / shares.sum(axis=0)
        mean = (shares * np.where(there, values, 0)).sum(axis=0)
        squares = (shares * np.where(there, values - mean, 0) ** 2).sum(axis=0)
        alone = there.sum(axis=0) < 2
        spread = np.where(alone, np.nan, squares / np.where(alone, 1, 1 - (shares**2).sum(axis=0)))
    return mean, np.sqrt(spread)
