"""How well a classifier tells the classes of cells, in figures and tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm._checks import typed
from scfm._warn import warn
from scfm.metrics.calibration import calibration_error
from scfm.metrics.predictions import check_classes, class_codes, fold_codes, probabilities_of, texts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["ClassificationReport", "classification_report"]

FIGURES = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "weighted_f1",
    "coverage",
    "answered_accuracy",
    "calibration_error",
    "log_loss",
)
NO_ANSWER = "no answer"


@dataclass(frozen=True, eq=False)
class ClassificationReport:
    """Figures of a classifier on labelled cells, by :func:`classification_report`.

    A cell without an answer counts as wrong in all figures but ``answered_accuracy``.

    Parameters
    ----------
    classes
        Names, in the order of all tables.
    n_cells
        Labelled cells, on which everything is computed.
    n_unlabelled
        Cells that were left out because their label is missing.
    accuracy
        Share of the cells whose class is predicted.
    balanced_accuracy
        Mean recall of the classes that have cells.
    macro_f1, weighted_f1
        Mean F1 of the classes that have cells or are predicted: all alike, or by their number of cells.
    coverage
        Share of the cells that have an answer.
    answered_accuracy
        Accuracy among them; NaN if there are none.
    calibration_error
        :func:`calibration_error` of the probabilities, in 15 bins; NaN without probabilities.
    log_loss
        Mean of −log(probability of the true class), rows scaled to a sum of 1, in which a probability below 2.2e-16 counts as that; NaN without
        probabilities.
    per_class
        A row for each class: ``precision`` (NaN if it is never predicted), ``recall`` (NaN if it has no cell), ``f1`` (NaN if
        both) and ``n_cells``.
    confusion
        Number of cells, of true classes (rows) × predicted ones (columns). Cells without an answer are in a last column
        ``"no answer"``, if there are any.
    by_fold
        The figures of each fold, with its ``n_cells``; ``None`` without folds.
    """

    classes: tuple[str, ...]
    n_cells: int
    n_unlabelled: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    weighted_f1: float
    coverage: float
    answered_accuracy: float
    calibration_error: float
    log_loss: float
    per_class: pd.DataFrame = field(repr=False)
    confusion: pd.DataFrame = field(repr=False)
    by_fold: pd.DataFrame | None = field(default=None, repr=False)

    def to_frame(self, name: str = "model") -> pd.DataFrame:
        """All figures as one row, to put below those of other models by :func:`pandas.concat`.

        Parameters
        ----------
        name
            Index of the row.

        Returns
        -------
        Figures over all cells, ``n_cells`` and ``n_unlabelled``. With folds, also ``<figure>_mean`` and ``<figure>_sd``: the
        mean over folds, each counting the same, and the sample standard deviation.
        """
        row = {figure: getattr(self, figure) for figure in (*FIGURES, "n_cells", "n_unlabelled")}
        if self.by_fold is not None:
            folds = self.by_fold[list(FIGURES)]
            for figure, mean, sd in zip(FIGURES, folds.mean(), folds.std(), strict=True):
                row |= {f"{figure}_mean": mean, f"{figure}_sd": sd}
        return pd.DataFrame([row], index=[name])


@typed
def classification_report(
    labels: ArrayLike,
    predicted: ArrayLike,
    *,
    probabilities: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    folds: ArrayLike | None = None,
    unknown: str = "unknown",
) -> ClassificationReport:
    """Score predicted classes of cells.

    Labels are compared as text. The figures are scikit-learn's
    (:func:`sklearn.metrics.precision_recall_fscore_support`, :func:`sklearn.metrics.log_loss`).

    Parameters
    ----------
    labels
        True class of each cell; cells where it is missing (NaN) are left out and counted.
    predicted
        Predicted class of each cell; missing, or ``unknown``, where the classifier gives no answer.
    probabilities
        Of the classes, ``(n_cells, n_classes)``; rows sum to 1. They are scored for every labelled cell, with an answer or not.
    classes
        Names of the classes, in the order of the columns of ``probabilities`` and of all tables. By default those in
        ``labels`` and ``predicted``, sorted; needed with ``probabilities``.
    folds
        Number of the fold in which each cell was predicted, of a cross-validation.
    unknown
        The word in ``predicted`` for no answer.

    Returns
    -------
    Figures, and tables of classes and of folds.

    Raises
    ------
    ValueError
        If arguments are not of as many cells, no cell is labelled, there are fewer than two classes, one is not among
        ``classes`` or called ``unknown``, ``probabilities`` are none or come without ``classes``, or ``folds`` are not whole
        numbers.

    Examples
    --------
    >>> import scfm
    >>> report = scfm.metrics.classification_report(["B", "B", "T", "T"], ["B", "T", "T", "unknown"])
    >>> report.accuracy, report.coverage, round(report.answered_accuracy, 3)
    (0.5, 0.75, 0.667)
    >>> report.confusion.loc["T"].to_dict()
    {'B': 0, 'T': 1, 'no answer': 1}
    """
    truth = texts_of(labels, "labels")
    answers = texts_of(predicted, "predicted", len(truth))
    answers[answers == unknown] = None
    if classes is None and probabilities is not None:
        msg = "probabilities need classes=, the name of each of their columns."
        raise ValueError(msg)
    if classes is None:
        classes = sorted({text for text in (*truth, *answers) if text is not None})
    check_classes(classes)
    if unknown in classes:
        msg = f"There is a class {unknown!r}, the word for no answer. Make it missing in labels, or give another word as unknown=."
        raise ValueError(msg)
    true, found = class_codes(truth, classes, "labels"), class_codes(answers, classes, "predicted")
    kept = true >= 0
    if not kept.any():
        msg = f"labels: all of {len(true):,} are missing; nothing can be scored."
        raise ValueError(msg)
    fold = fold_codes(folds, len(true))[kept]
    shares = None if probabilities is None else probabilities_of(probabilities, len(true), len(classes))[kept]
    true, found = true[kept], found[kept]
    if shares is not None:
        _check_order(found, shares)
    by_fold = None
    if folds is not None:
        rows = {
            number: _figures(true[cells], found[cells], None if shares is None else shares[cells], len(classes))
            | {"n_cells": int(cells.sum())}
            for number in np.unique(fold).tolist()
            for cells in [fold == number]
        }
        by_fold = pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="fold")
    return ClassificationReport(
        classes=tuple(classes),
        n_cells=len(true),
        n_unlabelled=int((~kept).sum()),
        per_class=_per_class(true, found, len(classes)).set_axis(pd.Index(classes, name="class")),
        confusion=_confusion(true, found, classes),
        by_fold=by_fold,
        **_figures(true, found, shares, len(classes)),
    )


def _check_order(found: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    """Warn if columns of probabilities are not those of the predicted classes; ties may be."""
    answered = np.flatnonzero(found >= 0)
    other = shares[answered, found[answered]] < shares[answered].max(axis=1)
    if other.any():
        warn(
            f"The predicted class of {other.sum():,} of {len(answered):,} cells is not the one of the highest probability. "
            "Are the columns of probabilities in the order of classes=?"
        )


def _per_class(true: NDArray[np.int64], found: NDArray[np.int64], n_classes: int) -> pd.DataFrame:
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        true, found, labels=np.arange(n_classes), average=None, zero_division=np.nan
    )
    return pd.DataFrame(dict(zip(("precision", "recall", "f1", "n_cells"), columns, strict=True)))


def _confusion(true: NDArray[np.int64], found: NDArray[np.int64], classes: Sequence[str]) -> pd.DataFrame:
    from sklearn.metrics import confusion_matrix

    n = len(classes)
    counts = confusion_matrix(true, np.where(found < 0, n, found), labels=np.arange(n + 1))[:n]
    table = pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=[*classes, NO_ANSWER])
    return table if (found < 0).any() else table[list(classes)]


def _figures(
    true: NDArray[np.int64], found: NDArray[np.int64], shares: NDArray[np.float64] | None, n_classes: int
) -> dict[str, float]:
    from sklearn.metrics import log_loss

    table, right, answered = _per_class(true, found, n_classes), found == true, found >= 0
    figures = (
        right.mean(),
        table["recall"].mean(),
        table["f1"].mean(),
        (table["f1"] * table["n_cells"]).sum() / len(true),
        answered.mean(),
        right[answered].mean() if answered.any() else np.nan,
        np.nan if shares is None else calibration_error(shares, true),
        np.nan
        if shares is None
        else log_loss(true, shares / shares.sum(axis=1, keepdims=True), labels=np.arange(n_classes)),
    )
    return dict(zip(FIGURES, map(float, figures), strict=True))
