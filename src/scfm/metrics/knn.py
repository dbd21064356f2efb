"""How well the type of a cell is told from its nearest cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm._checks import check_least, typed
from scfm.metrics.input import points_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["knn_accuracy", "scorable"]


@typed
def knn_accuracy(
    embedding: ArrayLike,
    labels: ArrayLike,
    *,
    n_neighbors: int | None = None,
    n_folds: int = 5,
    seed: int = 0,
) -> float:
    """Accuracy of the nearest neighbours of held-out cells (cosine distance), in cross-validation.

    Types are spread evenly over the folds (:class:`sklearn.model_selection.StratifiedKFold`), and the result is the mean
    over the folds. Cells without a label, and of types with fewer cells than folds, are left out.

    Parameters
    ----------
    embedding
        Cells × features.
    labels
        Type of each cell, missing where it is not known.
    n_neighbors
        Neighbours that vote. By default a twentieth of the n cells: ``min(15, max(3, n // 20))``.
    n_folds
        Folds.
    seed
        Decides which cells are in which fold.

    Returns
    -------
    Between 0 and 1.

    Raises
    ------
    ValueError
        If the embedding is no matrix of finite numbers, labels are not one for each cell, fewer than two types have enough
        cells, or ``n_neighbors`` is more than the cells of a training set.

    Examples
    --------
    >>> import numpy as np, scfm
    >>> types = np.repeat(["T cell", "B cell"], 20)
    >>> embedding = np.repeat(np.eye(2), 20, axis=0) + np.random.default_rng(0).normal(scale=0.1, size=(40, 2))
    >>> scfm.metrics.knn_accuracy(embedding, types)
    1.0
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    points = points_of(embedding)
    kept = scorable(labels, n_folds)
    if len(kept) != len(points):
        msg = f"There are {len(points):,} cells in the embedding and {len(kept):,} labels; each cell needs one."
        raise ValueError(msg)
    points, types = points[kept], np.asarray(labels, dtype=object)[kept].astype(str)
    k = min(15, max(3, len(points) // 20)) if n_neighbors is None else n_neighbors
    check_least("n_neighbors", k)
    n_training = len(points) - -(-len(points) // n_folds)
    if k > n_training:
        msg = f"n_neighbors={k} is more than the {n_training} cells of a training set; ask for fewer."
        raise ValueError(msg)
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    classifier = KNeighborsClassifier(k, metric="cosine")
    return float(cross_val_score(classifier, points, types, cv=folds).mean())


def scorable(labels: ArrayLike, n_folds: int = 5) -> NDArray[np.bool_]:
    """Cells whose label is known and has a cell for each fold.

    Raises
    ------
    ValueError
        If labels have no single dimension, or these cells are of fewer than two types.
    """
    check_least("n_folds", n_folds, 2)
    values = np.asarray(labels, dtype=object)
    if values.ndim != 1:
        msg = f"labels must be a list or an array with the type of each cell; got {type(labels).__name__} of shape {values.shape}."
        raise ValueError(msg)
    column = pd.Series(values)
    sizes = column.map(column.value_counts())
    kept: NDArray[np.bool_] = (column.notna() & (sizes >= n_folds)).to_numpy(bool)
    if column[kept].nunique() < 2:
        counts = column.value_counts().head(3).to_dict()
        msg = f"Fewer than two types in labels have {n_folds} cells or more (the largest: {counts or 'none'})."
        raise ValueError(msg)
    return kept
