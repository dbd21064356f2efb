"""How likely cells are under a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.genes import first_index
from scfm.model.registry import families_with
from scfm.tasks import Scores

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray
    from scipy import sparse

    from scfm.model._base import FoundationModel
    from scfm.model.arguments import Arguments

__all__ = ["scores_of"]


def scores_of(
    loaded: FoundationModel, data: AnnData | MuData | str | Path, arguments: Arguments, genes: pd.Index | None
) -> tuple[NDArray[np.float32], list[sparse.csr_matrix], dict[str, Any]]:
    """Log-likelihoods of counts and genes: means by cell, ``(n_obs, 2)``, and for each of some genes, if they are named.

    The last is everything needed to repeat the run.
    """
    if not loaded.implements("scorer"):
        msg = (
            f"{loaded.card.id} has no likelihood; models of these families have: {', '.join(families_with('scorer'))}."
        )
        raise TypeError(msg)
    with loaded.count_session(data, replace(arguments, pooling="gene", hidden_layer=0)) as session:
        tokens = None
        if genes is not None:
            names, tokens = session.source.var.index, session.genes.tokens
            if not names.equals(genes):  # those of ``raw`` may be more, or in another order
                at = first_index(names, genes)
                tokens = np.where(at >= 0, tokens[at], -1).astype(np.int32)
        task = Scores(session.model, session.options, session.source.n_obs, tokens)
        params = session.params(session.run(task))
    del params["pooling"]
    return task.values, [] if tokens is None else task.by_gene(), params
