"""A perturbation screen: which genes of which cells are changed, how much work that is, and where the effects go."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._keys import CONTROL, RANDOM_SHIFTS, STATES
from scfm._text import some
from scfm._warn import warn
from scfm.batch import ranges_of
from scfm.genes import first_index
from scfm.metrics.ranking import cells_of_groups
from scfm.run import ArraySink
from scfm.tasks import Embed, Perturb, Perturbations
from scfm.tl._gene_effects import GeneEffects
from scfm.tl._perturb_genes import ALL, chosen_genes
from scfm.tl._placing import Placing
from scfm.tl._random_shifts import RandomShifts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scfm._write import Results
    from scfm.model.session import CountSession, Session
    from scfm.run import RunStats
    from scfm.tasks import Effect, Kind
    from scfm.tl._states import StateAverage, States

__all__ = ["PERTURBED", "Screen"]

PERTURBED = "does not read how much genes are expressed; perturbation takes a model of one of these families"
logger = logging.getLogger("scfm")

_WORKLOAD = "perturbing %(cells)d cells: %(sequences)d sequences, about %(seconds).0f s"


class Screen:
    """Changes of genes of cells, and what they do.

    Parameters
    ----------
    session
        Model and cells.
    genes, kind, anchor, n_cells, seed, effect, gene_effects, embeddings
        As for :func:`scfm.tl.perturb`.
    states
        States between which effects are measured; the cells of the first are changed.

    Raises
    ------
    ValueError
        If the pooling gives no embedding of cells.
    """

    def __init__(
        self,
        session: Session,
        genes: str | Sequence[str | Sequence[str]] | Mapping[str, Sequence[str]],
        kind: Kind,
        anchor: str | None,
        states: States | None,
        n_cells: int | None,
        seed: int,
        *,
        effect: Effect = "embedding",
        gene_effects: bool = False,
        embeddings: bool = False,
    ) -> None:
        if session.options.pooling == "gene" and effect == "embedding":
            msg = "pooling='gene' gives no embedding of cells; leave pooling out, or use 'cls' or 'mean'."
            raise ValueError(msg)
        with_genes = [one for one in session.model.usable_poolings if one in ("cls", *session.model.context_poolings)]
        if gene_effects and session.options.pooling not in with_genes:
            msg = f"gene_effects=True takes pooling={' or '.join(map(repr, with_genes))}, got {session.options.pooling!r}."
            raise ValueError(msg)
        self._session, self._states, self._effect, self._embeddings = session, states, effect, embeddings
        self._chosen = None if isinstance(genes, str) and genes == ALL else chosen_genes(genes, session)
        self._anchor, self._seed = anchor, seed
        if embeddings and self._chosen is None:
            msg = "embeddings=True keeps an embedding for each gene of each cell; name the genes= that it is to be kept for."
            raise ValueError(msg)
        groups = None if self._chosen is None else tuple(self._chosen.groups)
        longest = max((len(group) for group in groups or ()), default=0)
        most = session.model.max_genes(session.options)
        if kind == "overexpress" and longest >= most:
            msg = f"genes holds a group of {longest:,} genes, which leave no room for others: the model takes {most:,}."
            raise ValueError(msg)
        token = None if anchor is None else chosen_genes([anchor], session).groups[0][0]
        self._perturbations = Perturbations(kind, groups, token)
        of_start: pd.Categorical[Any] | None = None
        if states is not None:
            of_start = pd.Categorical.from_codes(np.where(states.codes == 0, 0, -1), pd.Index(states.names[:1]))
        self.cells = cells_of_groups(of_start, session.source.n_obs, n_cells, seed)
        tokens = np.concatenate([file.genes.tokens for file in session.files()])
        known = np.unique(tokens[tokens >= 0]).astype(np.int64)
        self.tags = known if groups is None else np.arange(len(groups))
        """Numbers of the perturbations that there may be."""
        self.gene_effects = GeneEffects(self.tags, known) if gene_effects else None
        self._random_shifts: RandomShifts | None = None

    def log_workload(self, counts: NDArray[np.int64]) -> None:
        """Say what is about to be done, where that is read: the time is found out by running the network."""
        if logger.isEnabledFor(logging.INFO):
            logger.info(_WORKLOAD, self.workload(counts))

    def workload(self, counts: NDArray[np.int64]) -> dict[str, float]:
        """Numbers of cells, sequences and tokens, given those of each cell, and the seconds that they will take."""
        n_sequences, n_tokens = counts.sum(axis=0).tolist()
        seconds = n_tokens / self._tokens_per_second()
        return {"cells": len(self.cells), "sequences": n_sequences, "tokens": n_tokens, "seconds": seconds}

    def counts(self) -> NDArray[np.int64]:
        """Number of sequences and of their tokens for each of the cells, shape ``(n_cells, 2)``.

        Raises
        ------
        ValueError
            If there is nothing to change.

        Warns
        -----
        UserWarning
            If there is nothing to change for some genes or groups that were named.
        """
        task = self.task(None)
        blocks = self._session.encoded(ranges_of(self.cells))
        counts = np.concatenate([np.empty((0, 2), np.int64), *map(task.count, blocks)])
        if not counts.any():
            what = "a gene that the model knows" if self._chosen is None else "the genes, or all genes of a group"
            msg = f"None of the {len(self.cells)} cells expresses {what}, so there is nothing to perturb."
            raise ValueError(msg)
        names = [] if self._chosen is None else self._chosen.names
        absent = [name for tag, name in enumerate(names) if tag not in task.counted]
        if absent:
            warn(
                f"{len(absent)} of {len(names)} perturbations change none of the {len(self.cells)} cells, which do not express "
                f"their genes, or no others: {some(absent)}. Their effects are NaN, or not stored."
            )
        return counts

    @property
    def called(self) -> dict[str, list[str]] | None:
        """Genes of each perturbation as they were called, by its name; ``None``: each gene of a cell."""
        if self._chosen is None:
            return None
        return dict(zip(self._chosen.names, map(list, self._chosen.genes), strict=True))

    def described(self, state_average: StateAverage) -> dict[str, Any]:
        """What belongs to the parameters beside what those of each session have."""
        called = self.called or {}
        found: dict[str, Any] = {
            "kind": self._perturbations.kind,
            "effect": self._effect,
            "n_cells_perturbed": len(self.cells),
            "seed": self._seed,
            "anchor": self._anchor,
            "groups": {name: genes for name, genes in called.items() if genes != [name]},
        }
        if self._states is not None:
            found |= {"states_key": self._states.key, STATES: self._states.names, "state_average": state_average}
        return found

    def run(
        self, targets: NDArray[np.float64] | None, random: NDArray[np.float64] | None, n_sequences: int
    ) -> tuple[Perturb, RunStats]:
        """Compute the effects, on each of the states if there are any, and the mean ones on random states."""
        self._random_shifts = None if random is None else RandomShifts(self.tags, random)
        task = self.task(targets)
        return task, self._session.run(task, ranges_of(self.cells), sequences=n_sequences)

    def placed(self, task: Perturb, key: str, var_names: pd.Index) -> Results:
        """Effects under the names of their fields, for the genes of the data."""
        table = task.effects.table()
        (session,) = self._session.files()
        placing = self.placing(session, key, var_names)
        results = placing.results(table, self._session.source.obs_names)
        if self._random_shifts is not None:
            called = np.where(placing.columns >= 0, var_names.astype(str).to_numpy()[placing.columns], placing.names)
            results = replace(results, uns={RANDOM_SHIFTS: self._random_shifts.table(pd.Series(called, placing.tags))})
        if self.gene_effects is None:
            return results
        varm, varp = placing.on_genes(self.gene_effects, np.unique(table[1]), var_names)
        return replace(results, varm=varm, varp=varp)

    def placing(self, session: CountSession, key: str, var_names: pd.Index) -> Placing:
        """Where the effects on the cells of a file go."""
        if self._chosen is None:
            at = first_index(pd.Index(session.genes.tokens), pd.Index(self.tags))
            called = session.source.var.index.astype(str).to_numpy()[at]  # those with −1 are not in this file
            names, single = called.tolist(), self.tags
        else:
            names = self._chosen.names
            single = np.asarray([group[0] if len(group) == 1 else -1 for group in self._chosen.groups], np.int64)
        if self._perturbations.anchor is not None:
            single = np.full_like(single, -1)
        n_states = 0 if self._states is None else len(self._states.names)
        tokens = session.tokens_for(var_names)
        return Placing(key, n_states, self._effect, tokens, self.tags, names, single, self._chosen is not None)

    def embedded(self, task: Perturb) -> dict[str, Any]:
        """Embeddings of cells and copies, with the position and the name of the cell, and the name of the perturbation, of each."""
        rows, tags, vectors = task.effects.embeddings()
        assert self._chosen is not None
        names = np.asarray([*self._chosen.names, CONTROL], dtype=object)[tags]  # cells as they are have the tag -1
        cells = self._session.source.obs_names.to_numpy()[rows].astype(str)
        return {"X": vectors, "cells": rows, "obs_names": cells, "perturbation": names.astype(str)}

    def task(self, targets: NDArray[np.float64] | None) -> Perturb:
        """What is computed: effects on each of the states if there are any."""
        model, options = self._session.model, self._session.options
        return Perturb(
            model,
            options,
            self._perturbations,
            targets,
            self.gene_effects,
            self._random_shifts,
            effect=self._effect,
            embeddings=self._embeddings,
        )

    def _tokens_per_second(self) -> float:
        """How fast the network is, from a small batch."""
        import torch

        session = self._session
        batch = next(iter(session.batches(8)))
        embed = Embed(session.model, session.options, ArraySink(0, 0))
        compute = embed.make_forward(session.networks()[0], session.device, session.dtype)
        with torch.inference_mode():
            compute(batch)  # the first pass takes longer
            began = time.perf_counter()
            compute(batch).cpu()
        return len(session.devices) * len(batch.tokens) / (time.perf_counter() - began)
