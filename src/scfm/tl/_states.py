"""States of cells, such as diseased and healthy, between which perturbations are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from scfm.batch import ranges_of
from scfm.run import ArraySink
from scfm.tasks import Embed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.model.session import Session
    from scfm.run import RunStats

__all__ = ["StateAverage", "States", "average_states", "states_of"]

StateAverage = Literal["mean", "median"]


@dataclass(frozen=True)
class States:
    """States of cells between which changes are measured."""

    key: str
    names: list[str]
    """The start, the goal, and the alternatives."""
    codes: NDArray[np.int64]
    """Place of the state of each cell in ``names``, −1 for none."""


def states_of(
    session: Session, key: str | None, start: str | None, goal: str | None, alternatives: Sequence[str] | None
) -> States | None:
    """Read the states of the cells; ``None`` if none are asked for.

    Raises
    ------
    KeyError
        If ``key`` is not in ``obs``.
    ValueError
        If only some of the arguments are given, two states are the same, or one has no cells.
    """
    given = {"states_key": key, "start": start, "goal": goal}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and alternatives is None:
        return None
    if key is None or start is None or goal is None:
        msg = (
            f"States take states_key=, start= and goal= together (and perhaps alternatives=); {missing[0]}= is missing."
        )
        raise ValueError(msg)
    column = session.groups(key, "states_key")
    names = [start, goal, *(alternatives or ())]
    if len(set(names)) < len(names):
        msg = f"start, goal and alternatives must be different states, got {names}."
        raise ValueError(msg)
    places = [names.index(str(label)) if str(label) in names else -1 for label in column.categories]
    codes = np.asarray([*places, -1], np.int64)[column.codes]  # cells without a state have the code -1
    empty = [name for code, name in enumerate(names) if code not in codes]
    if empty:
        found = column.remove_unused_categories().categories.tolist()
        msg = f"No cell has the state {empty[0]!r} in obs[{key!r}]; found {found}."
        raise ValueError(msg)
    return States(key, names, codes)


class _Means:
    """Mean embedding of the cells of each state that have one, added up as they come."""

    def __init__(self, states: States, n_features: int) -> None:
        self._codes = states.codes
        self._sums = np.zeros((len(states.names), n_features))
        self._counts = np.zeros((len(states.names), 1), np.int64)

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Add one vector per cell, shape ``(n_cells, n_features)``."""
        vectors = output.float().cpu().numpy().astype(np.float64)
        kept = np.isfinite(vectors).all(axis=1)
        codes = self._codes[batch.rows[kept]]
        np.add.at(self._sums, codes, vectors[kept])
        np.add.at(self._counts, codes, 1)

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Nothing is held back."""

    def values(self) -> NDArray[np.float64]:
        """The means, NaN for a state of no cells; shape ``(n_states, n_features)``."""
        with np.errstate(invalid="ignore"):
            return self._sums / self._counts


def average_states(
    session: Session, states: States, average: StateAverage, n_random: int = 0, seed: int = 0
) -> tuple[pd.DataFrame, NDArray[np.float64] | None]:
    """Average embedding of the cells of each state, float64, shape ``(n_states, n_features)``.

    The second are ``n_random`` of the goal under permuted labels, if any are asked for. For means without these nothing of
    a single cell is kept; medians and permutations take the embeddings of all cells.

    Raises
    ------
    ValueError
        If no cell of a state has an embedding.
    """
    cells = np.flatnonzero(states.codes >= 0)
    n_features = session.model.n_features
    streams = average == "mean" and not n_random
    sink = _Means(states, n_features) if streams else ArraySink(session.source.n_obs, n_features)
    session.run(Embed(session.model, session.options, sink), ranges_of(cells))
    codes, random = states.codes[cells], None
    if isinstance(sink, _Means):
        values = sink.values()
    else:
        vectors = sink.values[cells].astype(np.float64)
        values = pd.DataFrame(vectors).groupby(codes).agg(average).to_numpy()
        random = _drawn(vectors, codes, average, n_random, seed) if n_random else None
    averages = pd.DataFrame(values, pd.Index(states.names), [str(feature) for feature in range(n_features)])
    empty = averages.index[averages.isna().any(axis=1)].tolist()
    if empty:
        msg = f"No cell of the state {empty[0]!r} holds a gene of the model, so the state has no embedding."
        raise ValueError(msg)
    return averages, random


def _drawn(
    vectors: NDArray[np.float64], codes: NDArray[np.int64], average: StateAverage, n_states: int, seed: int
) -> NDArray[np.float64]:
    """Average embeddings of the goal under permuted labels: of as many cells of start and goal as the goal has.

    Parameters
    ----------
    vectors
        Embeddings of the cells, shape ``(n_cells, n_features)``; those without one are left out.
    codes
        State of each cell: 0 is the start, 1 the goal.
    average
        How a state is averaged.
    n_states
        Number of permutations.
    seed
        Seed of them.
    """
    known = (codes <= 1) & np.isfinite(vectors).all(axis=1)
    cells, n_goal = np.flatnonzero(known), int((known & (codes == 1)).sum())
    rng = np.random.default_rng(seed)
    averaged = np.mean if average == "mean" else np.median
    return np.stack([averaged(vectors[rng.permutation(cells)[:n_goal]], axis=0) for _ in range(n_states)])
