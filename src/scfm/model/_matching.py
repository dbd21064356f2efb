"""Which genes of a data set a run uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from anndata import AnnData
from mudata import MuData

from scfm._keys import PARAMS
from scfm._text import some
from scfm.genes import OtherSpeciesError, panels_in
from scfm.model._known import models_of
from scfm.read import open_counts

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from scfm.genes import GeneMap
    from scfm.model.arguments import Arguments
    from scfm.model.recipe import Recipe, RunOptions

__all__ = ["Matching"]


@dataclass(frozen=True)
class Matching:
    """Matches genes under the arguments of a run."""

    model: Recipe
    gene_key: str | None
    options: RunOptions
    panels: tuple[NDArray[np.bool_], ...]
    """Genes of the model that may be used, one array for each data set in ``shared_with``; empty: all."""

    @classmethod
    def of(cls, model: Recipe, arguments: Arguments, options: RunOptions) -> Self:
        """Collect the genes of ``shared_with``.

        Raises
        ------
        TypeError
            If ``shared_with`` is, or holds, anything but AnnData, MuData and paths.
        """
        given = arguments.shared_with
        others = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
        panels = (panel for other in others for panel in _panels(other, model, arguments.modality, options))
        return cls(model, arguments.gene_key, options, tuple(panels))

    def __call__(self, var: pd.DataFrame) -> GeneMap:
        """Match the genes of one data set.

        Raises
        ------
        ValueError
            If the genes do not match; for genes of another species, the message names models that know it.
        """
        genes = _match(self.model, var, self.gene_key, self.options)
        return genes.shared(self.panels, self.model.vocabulary) if self.panels else genes


def _match(model: Recipe, var: pd.DataFrame, gene_key: str | None, options: RunOptions) -> GeneMap:
    try:
        return model.match(var, gene_key, options)
    except OtherSpeciesError as error:
        models = [name for name in models_of(error.species) if name != model.card.id]
        known = (
            f"Models that know {error.species}: {some(models)}"
            if models
            else f"No registered model knows {error.species}"
        )
        msg = f"{error} {known}. scfm.pp.to_orthologs maps genes to orthologs of another species."
        raise ValueError(msg) from error


def _panels(other: Any, model: Recipe, modality: str | None, options: RunOptions) -> list[NDArray[np.bool_]]:
    """Genes of the model in the embeddings of another data set, or else in its matrix."""
    if not isinstance(other, AnnData | MuData | str | Path):
        msg = f"shared_with= takes an AnnData, a MuData, a path, or a list of such; got {type(other).__name__}."
        raise TypeError(msg)
    if isinstance(other, MuData) and modality in other.mod:
        other = other[modality]
    digest, n_genes = model.vocabulary.sha256, len(model.vocabulary.genes)
    entries = [entry.get(PARAMS) for entry in getattr(other, "uns", {}).values() if isinstance(entry, Mapping)]
    stored = [params.get("genes") for params in entries if isinstance(params, Mapping)]
    found = [panel for genes in stored for panel in panels_in(genes).get(digest, []) if len(panel) >= n_genes]
    if not found:
        of_several = isinstance(other, MuData) or (isinstance(other, str | Path) and Path(other).suffix == ".h5mu")
        with open_counts(other, modality=modality if of_several else None) as source:
            found = panels_in(_match(model, source.var, None, replace(options, compat=None)).report.as_dict())[digest]
    return found
