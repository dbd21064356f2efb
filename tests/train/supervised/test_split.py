"""How cells and genes are divided."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfm.train.supervised.split import folds, split_cells, split_given


@given(st.integers(12, 300), st.integers(2, 4), st.integers(0, 9))
def test_each_class_has_its_share(n: int, n_classes: int, seed: int) -> None:
    codes = np.arange(n) % n_classes
    cells = np.arange(n) * 3
    split = split_cells(cells, train_size=0.6, validation_size=0.2, strata=codes, seed=seed)
    parts = (split.train, split.validation, split.test)
    assert sorted(np.concatenate(parts)) == cells.tolist()
    assert all((np.diff(part) > 0).all() for part in parts)
    for code in range(n_classes):
        size = (codes == code).sum()
        assert abs(np.isin(split.train, cells[codes == code]).sum() - 0.6 * size) <= 1
        assert abs(np.isin(split.validation, cells[codes == code]).sum() - 0.2 * size) <= 1


@given(st.integers(3, 12), st.floats(0.2, 0.7), st.floats(0.05, 0.25), st.integers(0, 9))
def test_donors_are_kept_whole(n_donors: int, train: float, validation: float, seed: int) -> None:
    donors = np.repeat([f"donor {i}" for i in range(n_donors)], np.arange(1, n_donors + 1) * 5)
    cells = np.arange(len(donors))
    split = split_cells(cells, train_size=train, validation_size=validation, groups=donors, seed=seed)
    parts = (split.train, split.validation, split.test)
    assert sorted(np.concatenate(parts)) == cells.tolist()
    found = [set(donors[part]) for part in parts]
    assert all(found)
    assert sum(map(len, found)) == n_donors


def test_the_seed_decides_alone() -> None:
    how = {"train_size": 0.5, "validation_size": 0.5, "strata": np.arange(40) % 3}
    first, same, other = (split_cells(np.arange(40), **how, seed=seed) for seed in (0, 0, 1))  # type: ignore[arg-type]
    assert np.array_equal(first.train, same.train)
    assert not np.array_equal(first.train, other.train)


@pytest.mark.parametrize("sizes", [(0.0, 0.5), (0.9, 0.2), (0.5, -0.1), (1.2, 0.0)])
def test_shares_out_of_range(sizes: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be shares that add up to 1 at most"):
        split_cells(np.arange(9), train_size=sizes[0], validation_size=sizes[1])


def test_too_few_donors() -> None:
    with pytest.raises(ValueError, match="has 1 donors, which are kept whole; 2 parts need as many"):
        split_cells(np.arange(9), train_size=0.9, validation_size=0.1, groups=np.array(["one"] * 9))


def test_a_given_split() -> None:
    column = pd.Series(["train", "test", None, "validation", "train", "test"])
    split = split_given(column, "part", np.array([0, 1, 2, 3, 5]))
    assert [part.tolist() for part in (split.train, split.validation, split.test)] == [[0], [3], [1, 5]]
    with pytest.raises(ValueError, match="also holds 'val'"):
        split_given(pd.Series(["train", "val"]), "part", np.arange(2))
    with pytest.raises(ValueError, match="has no cell with a label that is 'train'"):
        split_given(pd.Series(["test", "test"]), "part", np.arange(2))


def test_folds_test_each_item_once_and_keep_donors_whole() -> None:
    donors = np.arange(30) % 6
    tested = []
    for train, test in folds(30, 3, strata=np.arange(30) % 2, groups=donors):
        assert not set(donors[train]) & set(donors[test])
        tested += test.tolist()
    assert sorted(tested) == list(range(30))
    with pytest.raises(ValueError, match="n_folds=7 must be between 2 and the 6 donors"):
        list(folds(30, 7, groups=donors))
