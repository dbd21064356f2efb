"""Training: the losses of ontology-guided pretraining."""

from __future__ import annotations

from .losses import (
    CellTypeCoherenceLoss,
    LossAndAccuracy,
    MaskedGeneLoss,
    OntologyAlignmentLoss,
    RegularisationLoss,
    cell_representation,
)

__all__ = [
    "CellTypeCoherenceLoss",
    "LossAndAccuracy",
    "MaskedGeneLoss",
    "OntologyAlignmentLoss",
    "RegularisationLoss",
    "cell_representation",
]
