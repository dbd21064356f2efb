"""How likely cells are under a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scfm.model.registry import families_with
from scfm.tasks import Scores

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scfm.model._base import FoundationModel
    from scfm.model.arguments import Arguments

__all__ = ["scores_of"]


def scores_of(
    loaded: FoundationModel, data: AnnData | MuData | str | Path, arguments: Arguments
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Log-likelihoods of counts and genes of each cell, ``(n_obs, 2)``, and everything needed to repeat the run."""
    if not loaded.implements("scorer"):
        msg = (
            f"{loaded.card.id} has no likelihood; models of these families have: {', '.join(families_with('scorer'))}."
        )
        raise TypeError(msg)
    with loaded.session(data, replace(arguments, pooling="gene", hidden_layer=0)) as session:
        task = Scores(session.model, session.options, session.source.n_obs)
        params = session.params(session.run(task))
    del params["pooling"]
    return task.values, params
