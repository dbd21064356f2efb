from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from scfm.annotate import Reference, left_out_novelty, predict, threshold

if TYPE_CHECKING:
    from collections.abc import Callable


def test_the_share_of_known_cells_that_is_rejected(draw: Callable[..., Reference]) -> None:
    reference, query = replace(draw(3000), batches=None), draw(3000, seed=1).values
    for share in (0.05, 0.3):
        assert predict(reference, query, reject=share).rejected.mean() == pytest.approx(share, abs=0.02)


def test_batches_are_left_out_as_a_whole(draw: Callable[..., Reference]) -> None:
    reference = draw(60)
    assert reference.batches is not None
    folds = list(reference.folds(0))
    assert len(folds) == 3
    for known, left in folds:
        assert not set(known.batches) & set(left.batches)
        assert len(known.codes) + len(left.codes) == 60
    single = list(replace(reference, batches=None).folds(0))
    assert [len(left.codes) for _, left in single] == [12] * 5
    np.testing.assert_array_equal(
        np.sort(np.concatenate([left.values for _, left in single]), axis=0), np.sort(reference.values, axis=0)
    )


def test_a_new_batch_is_less_alike_than_the_cells_of_known_ones(draw: Callable[..., Reference]) -> None:
    reference, shift = draw(600), np.random.default_rng(5).normal(size=(3, 6)) * 4
    moved = replace(reference, values=reference.values + shift[reference.batches])
    as_one = left_out_novelty(replace(moved, batches=None), 0)
    assert threshold(left_out_novelty(moved, 0), 0.05) > threshold(as_one, 0.05)


def test_a_label_of_one_batch_does_not_count(draw: Callable[..., Reference]) -> None:
    reference = draw(60)
    batches = np.where(reference.codes == 2, 0, 1 + np.arange(60) % 2)
    folds = list(replace(reference, batches=batches).folds(0))
    sizes = sorted(len(left.codes) for _, left in folds)
    assert (len(sizes), sizes[0], sum(sizes)) == (3, 0, 45)
    assert all(known.present()[left.codes].all() for known, left in folds)


def test_what_cannot_be_left_out(draw: Callable[..., Reference]) -> None:
    reference = draw(60)
    with pytest.raises(ValueError, match=r"A reference of one batch cannot be split.*reject=None"):
        left_out_novelty(replace(reference, batches=np.zeros(60, dtype=np.int64)), 0)
    with pytest.raises(ValueError, match="cannot be calibrated"):
        threshold(np.array([]), 0.05)
    with pytest.raises(ValueError, match="cannot be calibrated"):
        predict(replace(reference, batches=reference.codes), reference.values, reject=0.05)  # a label a batch
