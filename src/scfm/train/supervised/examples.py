"""Labelled cells, and how they are divided among training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from scfm._text import some
from scfm._warn import warn
from scfm.train.supervised.split import Split, split_cells, split_given
from scfm.train.supervised.targets import Classes, Numbers, Target, column_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from scfm.train.supervised.setup import Setup

__all__ = ["Examples"]


@dataclass(frozen=True)
class Examples:
    """Values of all targets of all cells."""

    obs: pd.DataFrame
    targets: Mapping[str, Target]
    values: dict[str, NDArray[Any]]
    """Of each target, shape ``(n_cells,)``."""
    cells: NDArray[np.int64]
    """Positions of the cells that can be used and have a value of one target at least."""
    donors_key: str | None

    @classmethod
    def of(cls, obs: pd.DataFrame, targets: Mapping[str, Target], setup: Setup, usable: NDArray[np.bool_]) -> Self:
        """Read the columns; a ValueError if no cell is left."""
        values = {
            name: target.values(column_of(obs, name), name, setup.unlabeled_category)
            for name, target in targets.items()
        }
        known = np.logical_or.reduce([target.known(values[name]) for name, target in targets.items()])
        cells = np.flatnonzero(known & usable)
        if not len(cells):
            msg = f"No cell has both a value in obs[{some(map(repr, targets))}] and genes (an embedding) of the model."
            raise ValueError(msg)
        return cls(obs, targets, values, cells, setup.donors_key)

    def divided(self, sizes: tuple[float, float], split: str | Split | None, seed: int) -> Split:
        """Cells of each part: as they are given, or at random with donors whole, or else with the same classes."""
        if isinstance(split, Split):
            parts = (split.train, split.validation, split.test)
            return Split.of(*(np.intersect1d(part, self.cells) for part in parts))
        if isinstance(split, str):
            given = split_given(column_of(self.obs, split), split, self.cells)
            self._check_whole(given, split)
            return given
        (first, target), *others = self.targets.items()
        strata = self.values[first][self.cells] if isinstance(target, Classes) and not others else None
        return split_cells(
            self.cells,
            train_size=sizes[0],
            validation_size=sizes[1],
            strata=strata,
            groups=self.donors(),
            seed=seed,
        )

    def donors(self) -> NDArray[Any] | None:
        """Donor of each of the cells, if donors are kept whole."""
        if self.donors_key is None:
            return None
        column = column_of(self.obs, self.donors_key)
        missing = int(column.iloc[self.cells].isna().sum())
        if missing:
            msg = f"obs[{self.donors_key!r}] is missing for {missing} cells, whose donor is then not known; leave these cells out."
            raise ValueError(msg)
        return column.astype(str).to_numpy()[self.cells]

    def _check_whole(self, split: Split, name: str) -> None:
        """A ValueError if a donor is in several parts."""
        donors = self.donors()
        if donors is None:
            return
        parts = [set(donors[np.searchsorted(self.cells, part)]) for part in (split.train, split.validation, split.test)]
        shared = sorted((parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2]))
        if shared:
            msg = (
                f"split={name!r} has cells of the donor {some(map(repr, shared))} in several parts, and donors_key={self.donors_key!r} "
                "keeps donors whole: change the column, or set up without donors_key."
            )
            raise ValueError(msg)

    def fitted(self, rows: NDArray[np.int64], *, balanced: bool) -> dict[str, Target]:
        """The targets with what is learned from the cells that are trained on: weights of classes, or a scale."""
        return {
            name: _fitted(target, self.values[name][rows], name, balanced=balanced)
            for name, target in self.targets.items()
        }

    def learned(self, targets: Mapping[str, Target]) -> dict[str, NDArray[Any]]:
        """Values as the network learns them, by the scale of fitted targets."""
        return {name: target.scaled(self.values[name]) for name, target in targets.items()}

    def draw_weights(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Weight of each cell, by which all classes of the first target come equally often."""
        name, target = next(iter(self.targets.items()))
        if not isinstance(target, Classes):
            msg = f"balanced=True is for classes, and obs[{name!r}] holds numbers; leave it out."
            raise ValueError(msg)
        codes = self.values[name][rows]
        return np.where(codes >= 0, target.balanced(codes)[np.maximum(codes, 0)], 0.0)


def _fitted(target: Target, values: NDArray[Any], name: str, *, balanced: bool) -> Target:
    if not target.known(values).any():
        msg = f"No cell that is trained on has a value in obs[{name!r}]."
        raise ValueError(msg)
    if isinstance(target, Numbers):
        return Numbers.of(values, name)
    absent = [label for code, label in enumerate(target.labels) if not (values == code).any()]
    if len(absent) == len(target.labels) - 1:
        msg = f"All cells that are trained on have the same label of obs[{name!r}]: raise train_size, or change seed or split."
        raise ValueError(msg)
    if absent:
        warn(f"No cell that is trained on has the label {some(absent)} of obs[{name!r}]; it will not be predicted.")
    return replace(target, weights=tuple(target.balanced(values).tolist()) if balanced else None)
