from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from scfm.annotate import LabelSpace, Reference

if TYPE_CHECKING:
    from collections.abc import Callable


def slow_novelty(reference: Reference, query: np.ndarray) -> np.ndarray:
    """1 − largest cosine under the inner product of the inverse covariance within labels."""
    values = reference.values.astype(np.float64)
    means = np.array([values[reference.codes == code].mean(axis=0) for code in np.unique(reference.codes)])
    within = np.concatenate(
        [values[reference.codes == code] - means[i] for i, code in enumerate(np.unique(reference.codes))]
    )
    inner = np.linalg.inv(LedoitWolf(assume_centered=True).fit(within).covariance_)
    origin = means.mean(axis=0)
    found = []
    for cell in query - origin:
        cosines = [
            cell @ inner @ mean / np.sqrt((cell @ inner @ cell) * (mean @ inner @ mean)) for mean in means - origin
        ]
        found.append(1 - max(cosines))
    return np.array(found)


def test_novelty_is_the_cosine_of_the_definition(draw: Callable[..., Reference]) -> None:
    reference, query = draw(), draw(30, seed=1).values
    novelty = LabelSpace.fit(reference).novelty(query)
    assert (novelty.dtype, novelty.shape) == (np.float32, (30,))
    np.testing.assert_allclose(novelty, slow_novelty(reference, query), atol=1e-4)


def test_variation_within_labels_becomes_one(draw: Callable[..., Reference]) -> None:
    reference = draw(20_000)
    white = LabelSpace.fit(reference).whiten(reference.values)
    within = white - np.array([white[reference.codes == code].mean(axis=0) for code in range(4)])[reference.codes]
    np.testing.assert_allclose(np.cov(within.T), np.eye(6), atol=0.02)


def test_units_rotation_and_place_do_not_matter(draw: Callable[..., Reference]) -> None:
    reference, query = draw(), draw(30, seed=1).values
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))

    def moved(values: np.ndarray) -> np.ndarray:
        return 50 * values.astype(np.float64) @ turn + np.arange(6)

    other = LabelSpace.fit(replace(reference, values=moved(reference.values)))
    expected = LabelSpace.fit(reference).novelty(query)
    np.testing.assert_allclose(other.novelty(moved(query)), expected, atol=1e-4)


def test_a_frequent_label_does_not_pull_the_origin(draw: Callable[..., Reference]) -> None:
    reference = draw()
    cells = np.concatenate([np.arange(200), np.tile(np.flatnonzero(reference.codes == 1), 9)])
    np.testing.assert_allclose(
        LabelSpace.fit(reference.take(cells)).origin, LabelSpace.fit(reference).origin, atol=1e-5
    )


def test_novel_cells_are_the_novel_ones(draw: Callable[..., Reference]) -> None:
    reference = draw(400, n_labels=5)
    held = reference.codes == 4
    novelty = LabelSpace.fit(reference.take(np.flatnonzero(~held))).novelty(reference.values)
    assert novelty[held].min() > np.median(novelty[~held])
    assert 0 <= novelty.min() <= novelty.max() <= 2


def test_more_features_than_cells() -> None:
    rng = np.random.default_rng(0)
    codes = np.array([0, 0, 0, 1, 1, 2])
    values = rng.normal(size=(6, 40)) + 5 * np.eye(40)[codes]
    novelty = LabelSpace.fit(Reference(values, codes, ["a", "b", "c"])).novelty(values)
    assert np.isfinite(novelty).all()
    assert novelty.max() < 0.5


def test_a_cell_in_the_middle_is_like_none(draw: Callable[..., Reference]) -> None:
    space = LabelSpace.fit(draw())
    np.testing.assert_allclose(space.novelty(space.origin[None]), 1, atol=1e-6)


def test_nothing_known_about_variation() -> None:
    values = np.array([[1.0, 2.0], [3.0, 4.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match=r"None of the 2 labels has two different cells.*Give more cells"):
        LabelSpace.fit(Reference(values, np.array([0, 1, 1]), ["a", "b"]))
