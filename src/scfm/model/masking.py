"""How much a cell's embedding changes when one of its genes is masked."""

from __future__ import annotations

import logging
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._keys import PARAMS
from scfm.metrics.ranking import cells_of_groups, ranked_table
from scfm.model.registry import families_with, family_class
from scfm.run.device import default_batch_tokens
from scfm.run.engine import free_memory, out_of_memory
from scfm.run.sinks import GeneStatesSink

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    import torch
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray
    from scipy import sparse

    from scfm._types import TokenBatch
    from scfm.model._base import FoundationModel
    from scfm.model.arguments import Arguments
    from scfm.model.session import CountSession
    from scfm.weights import ModelCard

__all__ = ["MaskedGenes", "check_family_masks", "score_markers"]

logger = logging.getLogger("scfm")

MASK = "<mask>"


def check_masks(model: FoundationModel) -> None:
    """Raise a TypeError unless the model was trained with masked genes."""
    check_family_masks(model.card)
    if MASK not in model.vocabulary.special_tokens:
        msg = f"The vocabulary of {model.card.id} has no {MASK}: marker genes take a model that has."
        raise TypeError(msg)


def check_family_masks(card: ModelCard) -> None:
    """Raise a TypeError unless models of the family were trained with masked genes; needs no weights."""
    if not family_class(card.family).implements("masked_outputs"):
        names = ", ".join(families_with("masked_outputs"))
        msg = (
            f"{card.id} was not trained with masked genes; marker genes take a model of one of these families: {names}."
        )
        raise TypeError(msg)


class MaskedGenes:
    """``1 − cos(z, z_g)`` of each gene ``g`` of a cell, with ``z`` its embedding and ``z_g`` that with the gene masked.

    Parameters
    ----------
    session
        Model, source and choices; its pooling is that of the embedding.
    tokens
        Tokens that are masked, sorted; others are left alone.
    max_tokens
        Tokens that go through the network together.
    """

    def __init__(self, session: CountSession, tokens: NDArray[np.int64], max_tokens: int) -> None:
        self._model, self._options, self._tokens, self._max_tokens = session.model, session.options, tokens, max_tokens

    def __call__(self, network: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        """Scores of the tokens of a batch, float32, shape ``(n_tokens, 1)``; 0 for tokens that are not masked."""
        while True:
            try:
                return self._scores(network, batch)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self._max_tokens <= batch.lengths.max():
                    raise
            free_memory()
            self._max_tokens //= 2
            logger.warning("Out of memory: going on with %d tokens at a time.", self._max_tokens)

    def _scores(self, network: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        import torch

        lengths = batch.lengths.tolist()
        used = torch.from_numpy(np.isin(batch.tokens, self._tokens)).split(lengths)
        positions = [cell.nonzero()[:, 0] for cell in used]
        whole = self._model.forward(network, batch, self._options)
        copies = self._model.masked_outputs(network, batch, positions, self._options, max_tokens=self._max_tokens)
        scores = torch.zeros(len(batch.tokens), 1)
        at = 0
        for length, places, z, masked in zip(lengths, positions, whole, copies, strict=True):
            # in float64: what is left of 1 - cos in float32 is mostly rounding
            cos = torch.cosine_similarity(masked.cpu().double(), z.cpu().double()[None])
            scores[at + places, 0] = (1 - cos).float()
            at += length
        return scores


class _Rows:
    """Collects scores as the parts of a CSR matrix."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def append(self, cells: NDArray[np.int64], genes: NDArray[np.int64], states: NDArray[np.float32]) -> None:
        """Store the scores of one block, sorted by cell and gene."""
        self._parts.append((cells, genes, states[:, 0]))

    def matrix(self, shape: tuple[int, int]) -> sparse.csr_matrix:
        """All scores; zeros that were computed are stored, too."""
        from scipy import sparse

        nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        cells, genes, scores = map(np.concatenate, zip(*(self._parts or [nothing]), strict=True))
        indptr = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=shape[0]))])
        return sparse.csr_matrix((scores, genes, indptr), shape=shape)


def masked_scores(
    session: CountSession, columns: NDArray[np.int64], spans: list[tuple[int, int]] | None
) -> tuple[sparse.csr_matrix, dict[str, Any]]:
    """Score genes in cells by masking them.

    Parameters
    ----------
    session
        Model, source and choices.
    columns
        Columns of the source whose genes are masked.
    spans
        Ranges of cells; all by default.

    Returns
    -------
    scores
        float32, shape ``(n_obs, n_vars)`` of the source; entries that are stored were computed.
    params
        Everything needed to repeat the run.
    """
    tokens = np.full_like(session.genes.tokens, -1)
    tokens[columns] = session.genes.tokens[columns]
    rows = _Rows()
    budget = default_batch_tokens(session.device)
    scorer = MaskedGenes(session, np.unique(tokens[tokens >= 0]), budget)
    sink = GeneStatesSink(tokens, rows)
    # a cell of n genes is n copies of n genes: batches of cells stay as large as batches of copies
    stats = session.into(sink, scorer, batch_tokens=isqrt(budget), spans=spans, empty="without scores")
    return rows.matrix((session.source.n_obs, len(tokens))), session.params(stats)


def score_markers(
    loaded: FoundationModel,
    data: AnnData | MuData | str | Path,
    arguments: Arguments,
    *,
    groupby: str | None,
    genes: Sequence[str] | None,
    n_cells: int | None,
    seed: int,
) -> tuple[sparse.csr_matrix, pd.Index, dict[str, Any]]:
    """Scores, shape ``(n_obs, n_vars)`` of the source, the names of its genes, and what goes to ``uns``."""
    check_masks(loaded)
    with loaded.count_session(data, arguments) as session:
        if session.options.pooling == "gene":
            msg = "pooling='gene' gives no embedding of cells; leave pooling out, or use 'cls' or 'mean'."
            raise ValueError(msg)
        source = session.source
        names = source.var.index
        columns = session.columns_of(genes)
        if not len(columns):
            msg = "genes is empty, so there is nothing to mask; leave it out to mask all genes."
            raise ValueError(msg)
        labels = None if groupby is None else session.groups(groupby)
        cells = cells_of_groups(labels, source.n_obs, n_cells, seed)
        scores, params = masked_scores(session, columns, _spans(cells))
    params |= {"method": "masking", "reference": "rest", "use_raw": False, "n_cells_scored": len(cells), "seed": seed}
    if labels is None:
        return scores, names, {PARAMS: params}
    params |= {"groupby": groupby}
    return scores, names, {PARAMS: params, **ranked_table(scores[cells], labels[cells], names)}


def _spans(cells: np.ndarray) -> list[tuple[int, int]]:
    """Runs of neighbouring cells."""
    borders = np.flatnonzero(np.diff(cells, prepend=-2) > 1)
    stops = np.append(borders[1:], len(cells))
    return [(int(cells[start]), int(cells[stop - 1]) + 1) for start, stop in zip(borders, stops, strict=True)]
