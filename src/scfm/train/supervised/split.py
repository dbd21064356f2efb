"""Which cells are trained on, which judge the model while it is trained, and which are kept for the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["Split", "folds", "split_cells", "split_given"]

NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Positions of the cells of each part, sorted; cells without a label are in none."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]

    @classmethod
    def of(cls, *parts: NDArray[Any]) -> Self:
        """Sort the positions."""
        return cls(*(np.sort(np.asarray(part, dtype=np.int64)) for part in parts))


def split_cells(
    cells: NDArray[np.int64],
    *,
    train_size: float,
    validation_size: float,
    strata: NDArray[Any] | None = None,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
) -> Split:
    """Split cells at random.

    Parameters
    ----------
    cells
        Positions of the cells with a label.
    train_size, validation_size
        Share of the cells (of the groups, where they are kept whole) in each part; what is left is the test part.
    strata
        Class of each of the cells: each has its share in each part.
    groups
        Donor of each of the cells: all cells of a donor are in one part. Classes then fall as donors do.
    seed
        Decides, alone.

    Raises
    ------
    ValueError
        If the shares are out of range, there are too few groups, or no cell is left to train on.
    """
    if not 0 < train_size <= 1 or not 0 <= validation_size < 1 or train_size + validation_size > 1 + 1e-9:
        msg = (
            f"train_size={train_size} and validation_size={validation_size} must be shares that add up to 1 at most; "
            "what they leave is the test part."
        )
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    sizes = (train_size, validation_size)
    if groups is not None:
        parts = _by_groups(groups, sizes, rng)
    else:
        parts = _stratified(np.zeros(len(cells), int) if strata is None else strata, sizes, rng)
    split = Split.of(*(cells[parts == number] for number in range(3)))
    if not len(split.train):
        msg = f"train_size={train_size} of {len(cells)} cells leaves none to train on."
        raise ValueError(msg)
    return split


def _stratified(strata: NDArray[Any], sizes: tuple[float, float], rng: np.random.Generator) -> NDArray[np.int64]:
    """Part of each cell: those of a class are put into random order and cut."""
    _, codes = np.unique(strata, return_inverse=True)
    parts = np.empty(len(codes), dtype=np.int64)
    for code in range(codes.max(initial=-1) + 1):
        members = rng.permutation(np.flatnonzero(codes == code))
        # at least one cell of each class is trained on
        first = max(1, round(sizes[0] * len(members)))
        second = max(first, round(sum(sizes) * len(members)))
        parts[members] = np.repeat(np.arange(3), np.diff([0, first, second, len(members)]))
    return parts


def _by_groups(groups: NDArray[Any], sizes: tuple[float, float], rng: np.random.Generator) -> NDArray[np.int64]:
    """Part of each cell: groups are put into random order and cut where the share of cells comes closest."""
    names, codes = np.unique(groups.astype(str), return_inverse=True)
    needed = 1 + (sizes[1] > 0) + (sum(sizes) < 1 - 1e-9)
    if len(names) < needed:
        msg = f"donors_key has {len(names)} donors, which are kept whole; {needed} parts need as many at least."
        raise ValueError(msg)
    order = rng.permutation(len(names))
    share = np.cumsum(np.bincount(codes)[order]) / len(codes)
    first = 1 + int(np.abs(share[:-1] - sizes[0]).argmin()) if needed > 1 else len(names)
    second = first
    if sizes[1] > 0:
        third = sum(sizes) < 1 - 1e-9
        first = min(first, len(names) - needed + 1)
        second = len(names) if not third else first + 1 + int(np.abs(share[first:-1] - sum(sizes)).argmin())
    place = np.empty(len(names), dtype=np.int64)
    place[order] = np.repeat(np.arange(3), [first, second - first, len(names) - second])
    return np.asarray(place[codes])


def split_given(column: pd.Series, name: str, cells: NDArray[np.int64]) -> Split:
    """The split that a column of ``obs`` holds as ``"train"``, ``"validation"`` and ``"test"``; others are left out.

    Raises
    ------
    ValueError
        If it holds other values, or nothing to train on.
    """
    parts = column.iloc[cells].astype(object)
    other = sorted({str(value) for value in parts.dropna().unique()} - set(NAMES))
    if other or not (parts == "train").any():
        found = f"also holds {other[0]!r}" if other else "has no cell with a label that is 'train'"
        msg = f"split={name!r}: that column of obs {found}; expected 'train', 'validation', 'test', or missing."
        raise ValueError(msg)
    return Split.of(*(cells[(parts == part).to_numpy()] for part in NAMES))


def folds(
    n_items: int,
    n_folds: int,
    *,
    strata: NDArray[Any] | None = None,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions to train on and to test with, each item tested once; groups are kept whole, classes spread evenly.

    Raises
    ------
    ValueError
        If there are fewer items, groups, or items of a class than folds.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    n_units = n_items if groups is None else len(np.unique(groups))
    if not 2 <= n_folds <= n_units:
        what = "cells or genes" if groups is None else "donors"
        msg = f"n_folds={n_folds} must be between 2 and the {n_units} {what}."
        raise ValueError(msg)
    if (
        strata is not None
        and groups is None
        and (fewest := int(np.unique(strata, return_counts=True)[1].min())) < n_folds
    ):
        msg = f"n_folds={n_folds}: a class has {fewest} cells or genes, which is less; lower n_folds, or leave the class out."
        raise ValueError(msg)
    if groups is not None:
        splitter = (
            GroupKFold(n_folds) if strata is None else StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
        )
    else:
        splitter = (KFold if strata is None else StratifiedKFold)(n_folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(np.zeros(n_items), strata, groups):
        yield train.astype(np.int64), test.astype(np.int64)
