"""A perturbation screen: which genes of which cells are changed, how much work that is, and where the effects go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._keys import CONTROL, state_endings
from scfm._write import Results
from scfm.batch import ranges_of
from scfm.genes import first_index
from scfm.metrics.ranking import cells_of_groups
from scfm.run import ArraySink
from scfm.tasks import Embed, Perturb, Perturbations
from scfm.tl._gene_effects import GeneEffects
from scfm.tl._perturb_genes import ALL, chosen_genes

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
    genes, kind, anchor, n_cells, seed, gene_effects, embeddings
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
        *,
        gene_effects: bool = False,
        embeddings: bool = False,
    ) -> None:
        if session.options.pooling == "gene":
            msg = "pooling='gene' gives no embedding of cells; leave pooling out, or use 'cls' or 'mean'."
            raise ValueError(msg)
        if gene_effects and session.options.pooling not in ("cls", "mean"):
            msg = f"gene_effects=True takes pooling='cls' or 'mean', got {session.options.pooling!r}."
            raise ValueError(msg)
        self._session, self._states, self._embeddings = session, states, embeddings
        self._chosen = None if isinstance(genes, str) and genes == ALL else chosen_genes(genes, session)
        self._anchor = anchor
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
        of_start = (
            None
            if states is None
            else pd.Categorical([states.names[0] if code == 0 else None for code in states.codes.tolist()])
        )
        self.cells = cells_of_groups(of_start, session.source.n_obs, n_cells, seed)
        known = np.unique(session.genes.tokens[session.genes.tokens >= 0]).astype(np.int64)
        tags = known if groups is None else np.arange(len(groups))
        self._gene_effects = GeneEffects(tags, known) if gene_effects else None

    def workload(self) -> dict[str, float]:
        """Numbers of cells, sequences and tokens, and the seconds that they will take.

        Raises
        ------
        ValueError
            If there is nothing to change.
        """
        task = self._task(None)
        counts = [task.count(block) for block in self._session.encoded(ranges_of(self.cells))]
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
        return task, self._session.run(task, ranges_of(self.cells))

    def placed(self, task: Perturb, key: str, var_names: pd.Index) -> Results:
        """Effects under the names of their fields, for the genes of the data."""
        from scipy import sparse

        rows, tags, effects = task.effects.table()
        n_obs, obs_names = self._session.source.n_obs, self._session.source.obs_names
        tokens = pd.Index(self._session.tokens_for(var_names))
        columns, names = self._places(np.unique(tags), tokens)
        at = columns.reindex(tags).to_numpy()
        by_gene, layers, obsm = at >= 0, {}, {}
        endings = state_endings(0 if self._states is None else len(self._states.names))
        for suffix, values in zip(endings, effects.T, strict=True):
            if by_gene.any():
                placed = (values[by_gene], (rows[by_gene], at[by_gene]))
                layers[key + suffix] = sparse.csr_matrix(placed, shape=(n_obs, len(var_names)))
            if len(names):
                table = np.full((n_obs, len(names)), np.nan, np.float32)
                table[rows[~by_gene], names.index.get_indexer(pd.Index(tags[~by_gene]))] = values[~by_gene]
                obsm[key + suffix] = pd.DataFrame(table, index=obs_names, columns=names.to_numpy())
        varm, varp = self._on_genes(key, columns, names, tokens, var_names)
        return Results(
            obs={f"{key}_n": np.bincount(rows, minlength=n_obs)}, obsm=obsm, layers=layers, varm=varm, varp=varp
        )

    def _on_genes(
        self, key: str, columns: pd.Series[Any], names: pd.Series[Any], tokens: pd.Index, var_names: pd.Index
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Effects of genes on genes for ``varp``, of groups on genes for ``varm``."""
        from scipy import sparse

        if self._gene_effects is None:
            return {}, {}
        affected = first_index(tokens, pd.Index(self._gene_effects.tokens))
        perturbed = columns.reindex(self._gene_effects.tags, fill_value=-1).to_numpy()
        n, found, matrices = len(var_names), [], self._gene_effects.matrices()
        for matrix in matrices:
            entries = matrix.tocoo()
            row, column = perturbed[entries.row], affected[entries.col]
            kept = (row >= 0) & (column >= 0)
            found.append(sparse.csr_matrix((entries.data[kept], (row[kept], column[kept])), shape=(n, n)))
        varp = {key: found[0], f"{key}_n": found[1]} if (columns >= 0).any() else {}
        if not len(names):
            return {}, varp
        table = np.full((n, len(names)), np.nan, np.float32)
        entries = matrices[0][np.searchsorted(self._gene_effects.tags, names.index)].tocoo()
        kept = affected[entries.col] >= 0
        table[affected[entries.col][kept], entries.row[kept]] = entries.data[kept]
        return {f"{key}_effects": pd.DataFrame(table, index=var_names, columns=names.to_numpy())}, varp

    def embedded(self, task: Perturb) -> dict[str, Any]:
        """Embeddings of cells and copies, with the position and the name of the cell, and the name of the perturbation, of each."""
        rows, tags, vectors = task.effects.embeddings()
        assert self._chosen is not None
        names = np.asarray([*self._chosen.names, CONTROL], dtype=object)[tags]  # cells as they are have the tag -1
        cells = self._session.source.obs_names.to_numpy()[rows].astype(str)
        return {"X": vectors, "cells": rows, "obs_names": cells, "perturbation": names.astype(str)}

    def _places(self, tags: NDArray[np.int64], tokens: pd.Index) -> tuple[pd.Series[Any], pd.Series[Any]]:
        """Column in which each tag is stored, −1 for those that have one of their own; and the names of these, by tag."""
        if self._chosen is None:
            source = first_index(pd.Index(self._session.genes.tokens), pd.Index(tags))
            called = pd.Series(self._session.source.var.index[source].astype(str), index=tags, dtype=object)
            single = tags
        else:
            called = pd.Series(self._chosen.names, dtype=object)
            single = np.asarray([group[0] if len(group) == 1 else -1 for group in self._chosen.groups])
        alone = (single >= 0) & (self._perturbations.anchor is None)
        columns = np.where(alone, first_index(tokens, pd.Index(single)), -1)
        placed = pd.Series(columns, index=called.index)
        return placed, called[(placed < 0).to_numpy()]

    def _task(self, targets: NDArray[np.float64] | None) -> Perturb:
        model, options = self._session.model, self._session.options
        return Perturb(model, options, self._perturbations, targets, self._gene_effects, embeddings=self._embeddings)

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
