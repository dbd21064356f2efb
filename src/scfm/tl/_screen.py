"""A perturbation screen: which genes of which cells are changed, how much work that is, and where the effects go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._write import Results
from scfm.batch import runs_of
from scfm.genes import first_index
from scfm.metrics.ranking import cells_of_groups
from scfm.run import ArraySink
from scfm.tasks import Embed, Perturb, Perturbations
from scfm.tl._perturb_genes import ALL, chosen_genes, first_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scfm.model.session import CountSession
    from scfm.run import RunStats
    from scfm.tasks import Kind
    from scfm.tl._states import States

__all__ = ["Screen"]


class Screen:
    """Changes of genes of cells, and what they do.

    Parameters
    ----------
    session
        Model and cells.
    genes, kind, anchor, n_cells, seed
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
        session: CountSession,
        genes: str | Sequence[str | Sequence[str]] | Mapping[str, Sequence[str]],
        kind: Kind,
        anchor: str | None,
        states: States | None,
        n_cells: int | None,
        seed: int,
    ) -> None:
        if session.options.pooling == "gene":
            msg = "pooling='gene' gives no embedding of cells; leave pooling out, or use 'cls' or 'mean'."
            raise ValueError(msg)
        self._session, self._states = session, states
        self._chosen = None if isinstance(genes, str) and genes == ALL else chosen_genes(genes, session)
        self._anchor = anchor
        groups = None if self._chosen is None else tuple(self._chosen.groups)
        token = None if anchor is None else chosen_genes([anchor], session).groups[0][0]
        self._perturbations = Perturbations(kind, groups, token)
        of_start = (
            None
            if states is None
            else pd.Categorical([states.names[0] if code == 0 else None for code in states.codes.tolist()])
        )
        self.cells = cells_of_groups(of_start, session.source.n_obs, n_cells, seed)

    def workload(self) -> dict[str, float]:
        """Numbers of cells, sequences and tokens, and the seconds that they will take.

        Raises
        ------
        ValueError
            If there is nothing to change.
        """
        task = self._task(None)
        counts = [task.count(block) for block in self._session.encoded(runs_of(self.cells))]
        n_sequences, n_tokens = np.sum(counts, axis=0).tolist()
        if not n_sequences:
            what = "a gene that the model knows" if self._chosen is None else "the genes, or all genes of a group"
            msg = f"None of the {len(self.cells)} cells expresses {what}, so there is nothing to perturb."
            raise ValueError(msg)
        seconds = n_tokens / self._tokens_per_second()
        return {"cells": len(self.cells), "sequences": n_sequences, "tokens": n_tokens, "seconds": seconds}

    def described(self) -> dict[str, Any]:
        """What else belongs to the parameters: the anchor, and the genes of each group, by its name."""
        groups = (
            {} if self._chosen is None else dict(zip(self._chosen.names, map(list, self._chosen.genes), strict=True))
        )
        return {"anchor": self._anchor, "groups": {name: genes for name, genes in groups.items() if genes != [name]}}

    def run(self, targets: NDArray[np.float64] | None) -> tuple[Perturb, RunStats]:
        """Compute the effects, on each of the states if there are any."""
        task = self._task(targets)
        return task, self._session.run(task, runs_of(self.cells))

    def placed(self, task: Perturb, key: str, var_names: pd.Index) -> Results:
        """Effects under the names of their fields, for the genes of the data."""
        from scipy import sparse

        rows, tags, effects = task.effects.table()
        n_obs, session = self._session.source.n_obs, self._session
        columns, names = self._columns(np.unique(tags), first_index(var_names, session.source.var.index))
        at = columns.reindex(tags).to_numpy()
        layers, obsm = {}, {}
        for suffix, values in zip(self._suffixes(), effects.T, strict=True):
            by_gene = at >= 0
            if (columns >= 0).any():
                placed = (values[by_gene], (rows[by_gene], at[by_gene]))
                layers[key + suffix] = sparse.csr_matrix(placed, shape=(n_obs, len(var_names)))
            if len(names):
                table = np.full((n_obs, len(names)), np.nan, np.float32)
                table[rows[~by_gene], names.index.get_indexer(pd.Index(tags[~by_gene]))] = values[~by_gene]
                obsm[key + suffix] = pd.DataFrame(table, index=session.source.obs_names, columns=names.to_numpy())
        counts = np.bincount(rows, minlength=n_obs)
        return Results(obs={f"{key}_n": counts}, obsm=obsm, layers=layers)

    def _columns(self, tags: NDArray[np.int64], places: NDArray[np.intp]) -> tuple[pd.Series[Any], pd.Series[Any]]:
        """Column in which each tag is stored, −1 for those that have one of their own; and the names of these, by tag."""
        if self._chosen is None:
            first = first_columns(self._session.genes.tokens)
            source, names = np.asarray([first[tag] for tag in tags.tolist()], np.int64), self._session.source.var.index
            called = pd.Series([str(names[column]) for column in source.tolist()], index=tags, dtype=object)
        else:
            tags = np.arange(len(self._chosen.names))
            source, called = self._chosen.columns, pd.Series(self._chosen.names, index=tags, dtype=object)
        alone = (source >= 0) & (self._perturbations.anchor is None)
        columns = pd.Series(np.where(alone, places[source], -1), index=tags)
        return columns, called[(columns < 0).to_numpy()]

    def _suffixes(self) -> list[str]:
        if self._states is None:
            return [""]
        n = len(self._states.names) - 2
        return ["_start", "_goal", *(f"_alternative_{i}" for i in range(1, n + 1))]

    def _task(self, targets: NDArray[np.float64] | None) -> Perturb:
        return Perturb(self._session.model, self._session.options, self._perturbations, targets)

    def _tokens_per_second(self) -> float:
        """How fast the network is, from a small batch."""
        import torch

        session = self._session
        batch = next(iter(session.batches(8)))
        embed = Embed(session.model, session.options, ArraySink(0, 0))
        compute = embed.on(session.networks()[0], session.device, session.dtype)
        with torch.inference_mode():
            compute(batch)  # the first pass takes longer
            began = time.perf_counter()
            compute(batch).cpu()
        return len(session.devices) * len(batch.tokens) / (time.perf_counter() - began)
