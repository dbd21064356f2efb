"""Predict labels with probabilities, novelty and a rejection limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scfm.annotate._classify import Classifier, Metric, check_neighbours, label_probabilities
from scfm.annotate._ontology import OntologyScores
from scfm.annotate._space import LabelSpace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scfm.annotate._reference import Reference
    from scfm.ontology import CellOntology

__all__ = ["Prediction", "left_out_novelty", "predict", "predict_types", "threshold"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predictions for the cells of a query."""

    probabilities: NDArray[np.float32]
    """Probability of each label, shape ``(n_cells, n_labels)``; rows sum to 1, or are NaN without a prediction."""
    novelty: NDArray[np.float32]
    """Dissimilarity of each cell to the reference, shape ``(n_cells,)``; higher is more novel."""
    limit: float | None
    """Novelty above which a cell is rejected; ``None``: no limit."""

    @property
    def rejected(self) -> NDArray[np.bool_]:
        """Which cells are rejected, shape ``(n_cells,)``."""
        return np.zeros(len(self.novelty), dtype=bool) if self.limit is None else self.novelty > self.limit


def predict(
    reference: Reference,
    query: NDArray[np.floating],
    method: Classifier = "knn",
    *,
    n_neighbors: int = 15,
    metric: Metric = "whitened",
    reject: float | None = None,
    seed: int = 0,
) -> Prediction:
    """Predict labels of the reference.

    Parameters
    ----------
    reference
        Labelled cells; each label has at least one.
    query
        Embeddings, all finite, shape ``(n_cells, d)``.
    method, n_neighbors, metric
        As for :func:`label_probabilities`.
    reject
        Fraction of held-out reference cells that the limit rejects; ``None``: no limit.
    seed
        Seed of the linear probe and of the folds.

    Raises
    ------
    ValueError
        If there are fewer than two labels, or as :func:`check_neighbours`, :meth:`LabelSpace.fit` and
        :func:`left_out_novelty`.

    Examples
    --------
    >>> import numpy as np
    >>> from scfm.annotate import Reference, predict
    >>> codes = np.arange(60) % 2
    >>> values = np.random.default_rng(0).normal(size=(60, 3)) + 9 * np.eye(3)[codes]
    >>> found = predict(Reference(values, codes, ["T cell", "B cell"]), np.array([[9.0, 0, 0], [0, 0, 9]]))
    >>> found.probabilities[0]
    array([1., 0.], dtype=float32)
    >>> bool(found.novelty[1] > found.novelty[0])
    True
    """
    if len(reference.labels) < 2:
        msg = f"The reference has one label only, {reference.labels[0]!r}; there is nothing to choose from."
        raise ValueError(msg)
    if method == "knn":
        check_neighbours(reference, n_neighbors, metric)
    space = LabelSpace.fit(reference)
    limit = None if reject is None else threshold(left_out_novelty(reference, seed), reject)
    probabilities = label_probabilities(
        reference, query, method, space=space, n_neighbors=n_neighbors, metric=metric, seed=seed
    )
    return Prediction(probabilities, space.novelty(query), limit)


def predict_types(
    reference: Reference,
    query: NDArray[np.floating],
    ontology: CellOntology,
    candidates: Sequence[str],
    *,
    reject: float | None = None,
    seed: int = 0,
) -> Prediction:
    """Predict types of an ontology, including types without cells in the reference.

    Parameters
    ----------
    reference
        Cells whose labels are ids of terms.
    query
        Embeddings, all finite, shape ``(n_cells, d)``.
    ontology
        Graph of the types.
    candidates
        Ids of the terms to choose from.
    reject, seed
        As for :func:`predict`.

    Raises
    ------
    ValueError
        As :class:`OntologyScores`, or if no reference cells can be held out.
    """
    from scipy.special import softmax

    scorer = OntologyScores(ontology, reference)
    scores = scorer.scores(query, candidates)
    limit = None if reject is None else threshold(1 - scorer.left_out(seed), reject)
    novelty = (1 - scores.max(axis=1)).astype(np.float32)
    return Prediction(softmax(scores, axis=1).astype(np.float32), novelty, limit)


def left_out_novelty(reference: Reference, seed: int) -> NDArray[np.float32]:
    """Cross-validated novelty of the cells of the reference.

    Parameters
    ----------
    reference
        Labelled cells.
    seed
        As for :meth:`Reference.folds`.

    Returns
    -------
    float32, at most one value per cell, in no particular order.

    Raises
    ------
    ValueError
        If no cells can be held out.
    """
    return np.concatenate([LabelSpace.fit(known).novelty(left.values) for known, left in reference.folds(seed)])


def threshold(novelty: NDArray[np.floating], share: float) -> float:
    """Novelty above which ``share`` of the held-out cells are rejected.

    Parameters
    ----------
    novelty
        Novelty of held-out cells of known types.
    share
        Fraction of them to reject, between 0 and 1.

    Raises
    ------
    ValueError
        If there is no cell to calibrate with.
    """
    finite = novelty[np.isfinite(novelty)]
    if not len(finite):
        msg = "No label has cells left when a part of the reference is held out, so reject= cannot be calibrated."
        raise ValueError(msg)
    return float(np.quantile(finite, 1 - share))
