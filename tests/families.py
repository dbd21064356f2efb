"""A tiny checkpoint of every family of models, for tests that run over all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import scfm
from scfm.testing import write_geneformer, write_sccello, write_transcriptformer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from scfm.model import FoundationModel

N_GENES, LONGEST = 60, 24
IDS = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]


@dataclass(frozen=True)
class Tiny:
    """A tiny model."""

    family: str
    write: Callable[[Path], Any]
    """Writes the published folder, or says which model it is."""
    exempt: frozenset[str] = frozenset()
    """Rules that it does not keep by design, as :func:`scfm.testing.check_model` calls them."""
    offers: frozenset[str] = frozenset()
    """What it offers beside embeddings of cells, as :func:`scfm.testing.check_model` calls it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options under which it keeps all rules."""

    def load(self, folder: Path) -> FoundationModel:
        """Write and load it."""
        source = self.write(folder)
        # a folder of TranscriptFormer is that of ESM2-CE, too
        return scfm.model.load(source, family=self.family) if source == folder else scfm.model.load(source)


def dense_states(states: AnnData) -> NDArray[np.float32]:
    """Result of ``tl.gene_embeddings`` as an array of cells × genes × features, NaN where there is no state."""
    cells, genes = (states.obs[name].cat for name in ("cell", "gene"))
    values = np.full((len(cells.categories), len(genes.categories), states.n_vars), np.nan, np.float32)
    values[cells.codes, genes.codes] = states.X
    return values


_SIZES: dict[str, Any] = {"n_genes": N_GENES, "n_layers": 2, "max_tokens": LONGEST}
_RANKED = frozenset({"linear layers", "genes", "masked genes", "perturbed genes"})
_transcriptformer = partial(write_transcriptformer, n_genes=N_GENES, seq_len=20)
_in_order: dict[str, Any] = {"exempt": frozenset({"gene order"}), "options": {"gene_order": "vocabulary"}}
TINY = {
    "Geneformer V1": Tiny("geneformer", partial(write_geneformer, version=1, **_SIZES), offers=_RANKED),
    "Geneformer V2": Tiny("geneformer", partial(write_geneformer, **_SIZES), offers=_RANKED),
    "scCello": Tiny("sccello", partial(write_sccello, **_SIZES), offers=_RANKED),
    "scfm-mini": Tiny("scfm_mini", lambda _: "scfm-mini", offers=_RANKED),
    "TranscriptFormer": Tiny(
        "transcriptformer",
        _transcriptformer,
        offers=frozenset({"linear layers", "genes", "scores", "perturbed genes"}),
        **_in_order,
    ),
    "ESM2-CE": Tiny("esm2ce", _transcriptformer, offers=frozenset({"genes"}), **_in_order),
}
