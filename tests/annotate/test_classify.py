from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from scfm.annotate import LabelSpace, Reference, label_probabilities, predict

if TYPE_CHECKING:
    from collections.abc import Callable


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("metric", ["whitened", "cosine", "euclidean"])
def test_neighbours_are_counted(draw: Callable[..., Reference], metric: Any) -> None:
    reference, query = draw(60), draw(20, seed=1).values
    space = LabelSpace.fit(reference)
    found = label_probabilities(reference, query, "knn", space=space, n_neighbors=7, metric=metric)
    places = {"whitened": lambda x: unit(space.whiten(x)), "cosine": unit, "euclidean": lambda x: x}[metric]
    distances = np.linalg.norm(places(query)[:, None] - places(reference.values), axis=2)
    for row, order in zip(found, distances.argsort(axis=1), strict=True):
        expected = np.bincount(reference.codes[order[:7]], minlength=4) / 7
        np.testing.assert_allclose(row, expected, atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("method", ["knn", "logistic"])
def test_what_varies_within_labels_does_not_count(draw: Callable[..., Reference], method: Any) -> None:
    reference, query = draw(), draw(100, seed=1)
    found = predict(reference, query.values, method)
    assert (found.probabilities.argmax(axis=1) == query.codes).mean() > 0.97
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-5)
    assert not found.rejected.any()
    plain = predict(reference, query.values, metric="euclidean")
    assert (plain.probabilities.argmax(axis=1) == query.codes).mean() < 0.9


@pytest.mark.parametrize("method", ["knn", "logistic", "linear_probe"])
def test_a_cell_is_judged_alone(draw: Callable[..., Reference], method: Any) -> None:
    reference, query = draw(), draw(50, seed=1).values
    whole, part = predict(reference, query, method, reject=0.1), predict(reference, query[20:23], method, reject=0.1)
    np.testing.assert_allclose(part.probabilities, whole.probabilities[20:23], atol=1e-6)
    np.testing.assert_allclose(part.novelty, whole.novelty[20:23], atol=1e-6)
    assert part.limit == whole.limit


def test_errors(draw: Callable[..., Reference]) -> None:
    reference = draw(12)
    with pytest.raises(ValueError, match="n_neighbors=13 must be between 1 and the 12 cells"):
        predict(reference, reference.values, n_neighbors=13)
    with pytest.raises(
        ValueError, match=r"metric='manhattan' is unknown; choose from 'whitened', 'cosine', 'euclidean'"
    ):
        predict(reference, reference.values, metric="manhattan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one label only, 'type 0'"):
        predict(replace(reference, codes=np.zeros(12, dtype=np.int64), labels=["type 0"]), reference.values)
