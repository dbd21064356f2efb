"""States of cells, such as diseased and healthy, between which perturbations are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfm.batch import ranges_of
from scfm.run import ArraySink
from scfm.tasks import Embed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scfm.model.session import CountSession

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
    session: CountSession, key: str | None, start: str | None, goal: str | None, alternatives: Sequence[str] | None
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
    if key not in session.source.obs_columns:
        msg = f"states_key={key!r} is not a column of obs; found {session.source.obs_columns}."
        raise KeyError(msg)
    names = [start, goal, *(alternatives or ())]
    if len(set(names)) < len(names):
        msg = f"start, goal and alternatives must be different states, got {names}."
        raise ValueError(msg)
    column = pd.Categorical(session.source.column(key))
    places = [names.index(str(label)) if str(label) in names else -1 for label in column.categories]
    codes = np.asarray([*places, -1], np.int64)[column.codes]  # cells without a state have the code -1
    empty = [name for code, name in enumerate(names) if code not in codes]
    if empty:
        found = column.remove_unused_categories().categories.tolist()
        msg = f"No cell has the state {empty[0]!r} in obs[{key!r}]; found {found}."
        raise ValueError(msg)
    return States(key, names, codes)


def average_states(
    session: CountSession, states: States, average: StateAverage, n_random: int, seed: int
) -> tuple[pd.DataFrame, NDArray[np.float64] | None]:
    """Average embedding of the cells of each state, float64, shape ``(n_states, n_features)``.

    The second are ``n_random`` of the goal under permuted labels, if any are asked for.

    Raises
    ------
    ValueError
        If no cell of a state has an embedding.
    """
    cells = np.flatnonzero(states.codes >= 0)
    sink = ArraySink(session.source.n_obs, session.model.n_features)
    session.run(Embed(session.model, session.options, sink), ranges_of(cells))
    table = pd.DataFrame(sink.values[cells].astype(np.float64)).groupby(states.codes[cells])
    averages = table.mean() if average == "mean" else table.median()  # of the cells that have an embedding
    averages.index = pd.Index(states.names)
    averages.columns = averages.columns.astype(str)
    empty = averages.index[averages.isna().any(axis=1)].tolist()
    if empty:
        msg = f"No cell of the state {empty[0]!r} holds a gene of the model, so the state has no embedding."
        raise ValueError(msg)
    return averages, _drawn(sink.values[cells], states.codes[cells], average, n_random, seed) if n_random else None


def _drawn(
    vectors: NDArray[Any], codes: NDArray[np.int64], average: StateAverage, n_states: int, seed: int
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
    return np.stack(
        [averaged(vectors[rng.permutation(cells)[:n_goal]].astype(np.float64), axis=0) for _ in range(n_states)]
    )
