"""What is computed of cells, given the recipe of a model."""

from __future__ import annotations

from scfm.tasks.embed import Embed
from scfm.tasks.gene_means import GeneMeans
from scfm.tasks.gene_states import GeneStates
from scfm.tasks.masked_genes import MaskedGenes
from scfm.tasks.perturb import Effect, Perturb
from scfm.tasks.perturbations import Genes, Kind, Perturbations, Perturber, edit_ranks, edit_values
from scfm.tasks.scores import Scorer, Scores
from scfm.tasks.task import SupportsForward, Task

__all__ = [
    "Effect",
    "Embed",
    "GeneMeans",
    "GeneStates",
    "Genes",
    "Kind",
    "MaskedGenes",
    "Perturb",
    "Perturbations",
    "Perturber",
    "Scorer",
    "Scores",
    "SupportsForward",
    "Task",
    "edit_ranks",
    "edit_values",
]
