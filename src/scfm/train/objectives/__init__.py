"""What models are trained for, by the names that a config gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scfm.train.objectives.anchor import Anchor
from scfm.train.objectives.contrastive import Contrastive
from scfm.train.objectives.likelihood import Likelihood
from scfm.train.objectives.masked_genes import MaskedGenes
from scfm.train.objectives.sccello import ScCello

if TYPE_CHECKING:
    from scfm.train.objective import Objective

__all__ = ["OBJECTIVES", "Anchor", "Contrastive", "Likelihood", "MaskedGenes", "ScCello"]

OBJECTIVES: dict[str, type[Objective]] = {
    "masked_genes": MaskedGenes,
    "contrastive": Contrastive,
    "anchor": Anchor,
    "sccello": ScCello,
    "likelihood": Likelihood,
}
"""Classes of the losses by name."""
