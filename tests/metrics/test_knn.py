"""Accuracy of nearest neighbours: the protocol, and what is left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedKFold

from scfm.metrics import knn_accuracy


def drawn(n: int = 90, spread: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    labels = np.array(["a", "b", "c"] * (n // 3), dtype=object)
    centres = {"a": [1, 0, 0], "b": [0, 1, 0], "c": [0, 0, 1]}
    noise = np.random.default_rng(0).normal(scale=spread, size=(n, 3))
    return np.array([centres[label] for label in labels]) + noise, labels


def plain(points: np.ndarray, labels: np.ndarray, k: int, seed: int) -> float:
    """One cell at a time."""
    unit, shares = points / np.linalg.norm(points, axis=1, keepdims=True), []
    for training, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(points, labels.astype(str)):
        right = []
        for cell in test:
            nearest = training[np.argsort(-unit[training] @ unit[cell])[:k]]
            votes = pd.Series(labels[nearest]).value_counts()
            right.append(min(votes[votes == votes.max()].index) == labels[cell])
        shares.append(np.mean(right))
    return float(np.mean(shares))


@pytest.mark.parametrize(("n", "k"), [(30, 3), (90, 4), (600, 15)])
def test_equal_to_a_plain_computation(n: int, k: int) -> None:
    points, labels = drawn(n)
    expected = plain(points, labels, k, seed=0)
    assert 0.4 < expected < 1
    assert knn_accuracy(points, labels) == pytest.approx(expected)
    assert knn_accuracy(points, labels, seed=3) == pytest.approx(plain(points, labels, k, seed=3))
    assert knn_accuracy(points, labels, n_neighbors=1) == pytest.approx(plain(points, labels, 1, seed=0))


def test_unlabelled_cells_and_rare_types_are_left_out() -> None:
    points, labels = drawn()
    more = np.concatenate([labels, [None, np.nan, pd.NA, "d", "d", "d", "d"]])
    extended = np.concatenate([points, np.random.default_rng(1).normal(size=(7, 3))])
    assert knn_accuracy(extended, more) == knn_accuracy(points, labels)
    assert knn_accuracy(extended, pd.Categorical(pd.Series(more))) == knn_accuracy(points, labels)


def test_what_cannot_be_scored() -> None:
    points, labels = drawn()
    for changed, message in (
        ({"labels": labels[1:]}, "90 cells in the embedding and 89 labels"),
        ({"labels": ["a"] * 90}, r"Fewer than two types in labels have 5 cells or more \(the largest: {'a': 90}\)"),
        ({"labels": "a"}, r"labels must be .* got str of shape \(\)"),
        ({"labels": [None] * 90}, r"the largest: none"),
        ({"n_neighbors": 73}, "n_neighbors=73 is more than the 72 cells of a training set"),
        ({"n_neighbors": 0}, "n_neighbors"),
        ({"n_folds": 1}, "n_folds"),
        ({"embedding": points * np.nan}, "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            knn_accuracy(**{"embedding": points, "labels": labels} | changed)
