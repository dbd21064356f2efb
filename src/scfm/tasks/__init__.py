"""What is computed of cells, given the recipe of a model."""

from __future__ import annotations

from scfm.tasks.attention import Attention, PairMeans, cell_weights
from scfm.tasks.embed import Embed
from scfm.tasks.gene_directions import GeneDirections
from scfm.tasks.gene_means import GeneMeans
from scfm.tasks.gene_states import GeneStates
from scfm.tasks.masked_genes import MaskedGenes
from scfm.tasks.perturb import Effect, Perturb
from scfm.tasks.perturbations import Genes, Kind, Perturbations, Perturber, edit_ranks, edit_values
from scfm.tasks.predict_genes import PredictGenes
from scfm.tasks.scores import Scorer, Scores
from scfm.tasks.task import Resumable, SupportsForward, Task

__all__ = [
    "Attention",
    "Effect",
    "Embed",
    "GeneDirections",
    "GeneMeans",
    "GeneStates",
    "Genes",
    "Kind",
    "MaskedGenes",
    "PairMeans",
    "Perturb",
    "Perturbations",
    "Perturber",
    "PredictGenes",
    "Resumable",
    "Scorer",
    "Scores",
    "SupportsForward",
    "Task",
    "cell_weights",
    "edit_ranks",
    "edit_values",
]
