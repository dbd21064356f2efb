"""Plots."""

from __future__ import annotations

from scfm.pl._attention import attention
from scfm.pl._confusion import confusion
from scfm.pl._gene_context import gene_context
from scfm.pl._marker_genes import marker_genes
from scfm.pl._perturb import perturb
from scfm.pl._perturb_cells import perturb_cells
from scfm.pl._roc import roc
from scfm.pl._training import training

__all__ = ["attention", "confusion", "gene_context", "marker_genes", "perturb", "perturb_cells", "roc", "training"]


def __dir__() -> list[str]:
    return sorted(__all__)
