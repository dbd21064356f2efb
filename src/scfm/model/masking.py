"""Genes that matter for the embeddings of groups of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._keys import PARAMS
from scfm.metrics.ranking import cells_of_groups, ranked_table
from scfm.model.registry import families_with, family_class
from scfm.run.device import default_batch_tokens
from scfm.tasks import MaskedGenes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData
    from scipy import sparse

    from scfm.model._base import FoundationModel
    from scfm.model.arguments import Arguments
    from scfm.weights import ModelCard

__all__ = ["check_family_masks", "score_markers"]

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


def score_markers(
    loaded: FoundationModel,
    data: AnnData | MuData | str | Path,
    arguments: Arguments,
    *,
    groupby: str | None,
    genes: Sequence[str] | None,
    n_cells: int | None,
    seed: int,
) -> tuple[sparse.csr_matrix, Callable[[pd.Index], np.ndarray], dict[str, Any]]:
    """Scores, shape ``(n_obs, n_vars)`` of the source, what finds its columns by names, and what goes to ``uns``."""
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
        tokens = np.full_like(session.genes.tokens, -1)
        tokens[columns] = session.genes.tokens[columns]
        task = MaskedGenes(session.model, session.options, tokens, default_batch_tokens(session.device))
        params = session.params(session.run(task, _spans(cells)))
        scores = task.scores(source.n_obs)
    params |= {"method": "masking", "reference": "rest", "use_raw": False, "n_cells_scored": len(cells), "seed": seed}
    if labels is None:
        return scores, session.columns_for, {PARAMS: params}
    params |= {"groupby": groupby}
    return scores, session.columns_for, {PARAMS: params, **ranked_table(scores[cells], labels[cells], names)}


def _spans(cells: np.ndarray) -> list[tuple[int, int]]:
    """Runs of neighbouring cells."""
    borders = np.flatnonzero(np.diff(cells, prepend=-2) > 1)
    stops = np.append(borders[1:], len(cells))[: len(borders)]
    return [(int(cells[start]), int(cells[stop - 1]) + 1) for start, stop in zip(borders, stops, strict=True)]
