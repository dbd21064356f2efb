"""Cross-validation of a classifier: each cell, or gene, is predicted by a model that has not seen it."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm.metrics import classification_report
from scfm.train.supervised.split import Split, folds, split_cells

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm.metrics import ClassificationReport
    from scfm.train.supervised._base import SupervisedModel

__all__ = ["CrossValidation", "cross_validate"]

VALIDATION = 0.1
"""Share of the cells of a fold that choose the epoch; not those that are tested."""


@dataclass(frozen=True)
class CrossValidation:
    """Predictions of items that were left out, and how good they are."""

    report: ClassificationReport
    """Figures, tables of classes and of folds."""
    predictions: pd.DataFrame
    """``true``, ``fold``, ``label``, ``score`` and the probability of each class, by the name of the cell or gene."""

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Of the classes of the report, in their order, as :func:`scfm.metrics.roc_curves` takes them."""
        return self.predictions[[f"probability_{name}" for name in self.report.classes]].to_numpy(np.float64)


def cross_validate(
    model: SupervisedModel,
    items: NDArray[np.int64],
    codes: NDArray[np.int64],
    groups: NDArray[Any] | None,
    *,
    n_folds: int,
    seed: int,
    **how: Any,
) -> CrossValidation:
    """Train a copy of a model for each fold, and predict what it has not seen.

    Parameters
    ----------
    model
        A classifier with one target.
    items
        Positions of the cells or genes with a class.
    codes
        Class of each of them.
    groups
        Donor of each of them, which are kept whole.
    n_folds
        Number of folds.
    seed
        Decides the folds.
    **how
        Arguments of ``train``.
    """
    ((_, target),) = model.targets.items()
    checkpoints = how.pop("checkpoint_dir", None)
    found: list[pd.DataFrame] = []
    for number, (rest, left) in enumerate(folds(len(items), n_folds, strata=codes, groups=groups, seed=seed)):
        inner = split_cells(
            rest,
            train_size=1 - VALIDATION,
            validation_size=VALIDATION,
            strata=codes[rest],
            groups=None if groups is None or len(np.unique(groups[rest])) < 2 else groups[rest],
            seed=seed,
        )
        of_fold: Any = copy(model)
        of_fold.train(
            split=Split.of(items[inner.train], items[inner.validation], items[left]),
            seed=seed,
            checkpoint_dir=None if checkpoints is None else Path(checkpoints) / f"fold-{number}",
            **how,
        )
        table = of_fold.frame_of(items[left])
        table.insert(0, "fold", number)
        table.insert(0, "true", np.array(target.labels, dtype=object)[codes[left]])  # type: ignore[union-attr]
        found.append(table)
    whole = pd.concat(found)
    labels = list(target.labels)  # type: ignore[union-attr]
    report = classification_report(
        whole["true"].to_numpy(object),
        whole["label"].astype(object).to_numpy(),
        # a cell without genes has none, and counts as wrong
        probabilities=whole[[f"probability_{label}" for label in labels]].fillna(1 / len(labels)).to_numpy(np.float64),
        classes=labels,
        folds=whole["fold"].to_numpy(np.int64),
    )
    return CrossValidation(report, whole)
