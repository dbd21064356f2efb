"""Classify cells: nearest neighbours, logistic regression, linear probe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from scfm.annotate._probe import train_probe
from scfm.annotate._space import LabelSpace, unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm.annotate._reference import Reference

__all__ = ["Classifier", "Metric", "check_neighbours", "label_probabilities"]

Classifier = Literal["knn", "logistic", "linear_probe"]
Metric = Literal["whitened", "cosine", "euclidean"]


def label_probabilities(
    reference: Reference,
    query: NDArray[np.floating],
    method: Classifier,
    *,
    space: LabelSpace,
    n_neighbors: int = 15,
    metric: Metric = "whitened",
    seed: int = 0,
) -> NDArray[np.float32]:
    """Probability of each label for each cell of the query.

    Parameters
    ----------
    reference
        Labelled cells; each label has at least one.
    query
        Embeddings without NaN, shape ``(n_cells, d)``.
    method
        ``"knn"``: the fraction of each label among the nearest cells of the reference. ``"logistic"``: logistic
        regression on whitened embeddings, L2 penalty with ``C=1``. ``"linear_probe"``: :func:`train_probe` on the
        embeddings as they are.
    space
        Space of the reference.
    n_neighbors, metric
        For ``"knn"``: number of neighbours, and cosine distance in ``space``, or cosine or Euclidean distance of the
        embeddings.
    seed
        Seed of the linear probe.

    Returns
    -------
    float32, shape ``(n_cells, n_labels)``; rows sum to 1.
    """
    if method == "knn":
        return _by_neighbours(reference, query, space, n_neighbors, metric)
    if method == "logistic":
        return _by_regression(reference, query, space)
    return train_probe(reference, seed=seed).probabilities(query)


def check_neighbours(reference: Reference, n_neighbors: int, metric: str) -> None:
    """Raise a ValueError if the metric is unknown or ``n_neighbors`` exceeds the cells of the reference."""
    if metric not in get_args(Metric):
        msg = f"metric={metric!r} is unknown; choose from {', '.join(map(repr, get_args(Metric)))}."
        raise ValueError(msg)
    if not 1 <= n_neighbors <= len(reference.values):
        msg = f"n_neighbors={n_neighbors} must be between 1 and the {len(reference.values)} cells of the reference."
        raise ValueError(msg)


def _by_neighbours(
    reference: Reference, query: NDArray[np.floating], space: LabelSpace, n_neighbors: int, metric: Metric
) -> NDArray[np.float32]:
    from sklearn.neighbors import KNeighborsClassifier

    def placed(values: NDArray[np.floating]) -> NDArray[np.floating]:
        if metric == "euclidean":
            return values
        return unit(space.whiten(values) if metric == "whitened" else values)

    # Euclidean distances of unit vectors order as cosine distances
    classifier = KNeighborsClassifier(n_neighbors).fit(placed(reference.values), reference.codes)
    return np.asarray(classifier.predict_proba(placed(query)), dtype=np.float32)


def _by_regression(reference: Reference, query: NDArray[np.floating], space: LabelSpace) -> NDArray[np.float32]:
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(max_iter=1000).fit(space.whiten(reference.values), reference.codes)
    return np.asarray(classifier.predict_proba(space.whiten(query)), dtype=np.float32)
