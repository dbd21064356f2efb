"""The networks, in plain torch: packed tokens in, hidden states out, pooled to one vector per cell or gene; and losses."""

from scfm.nn.attention import AttentionPath, AttentionTile, Lengths, Packing
from scfm.nn.bert import BertEncoder, BertLayer
from scfm.nn.bert_config import BertConfig
from scfm.nn.causal import CausalPath
from scfm.nn.gene_rows import GeneRows, GeneVectors
from scfm.nn.heads import MaskedLMHead, head_targets
from scfm.nn.losses import (
    CellTypeCoherenceLoss,
    LossAndAccuracy,
    MaskedGeneLoss,
    OntologyAlignmentLoss,
    RegularisationLoss,
    cell_representation,
    summed_cross_entropy,
)
from scfm.nn.pooling import GeneMeans, pool_mean, pool_sum
from scfm.nn.published import check_shapes, published_keys
from scfm.nn.sccello import ProjectionHead, ScCelloConfig, ScCelloNetwork, check_sccello, gene_head, has_cell_head
from scfm.nn.task_heads import ModuleHead, Reading, States, TaskHead
from scfm.nn.transcriptformer import TranscriptFormer
from scfm.nn.transcriptformer_config import TranscriptFormerConfig
from scfm.nn.transcriptformer_heads import GeneScores, TranscriptFormerHeads, likelihood_targets

__all__ = [
    "AttentionPath",
    "AttentionTile",
    "BertConfig",
    "BertEncoder",
    "BertLayer",
    "CausalPath",
    "CellTypeCoherenceLoss",
    "GeneMeans",
    "GeneRows",
    "GeneScores",
    "GeneVectors",
    "Lengths",
    "LossAndAccuracy",
    "MaskedGeneLoss",
    "MaskedLMHead",
    "ModuleHead",
    "OntologyAlignmentLoss",
    "Packing",
    "ProjectionHead",
    "Reading",
    "RegularisationLoss",
    "ScCelloConfig",
    "ScCelloNetwork",
    "States",
    "TaskHead",
    "TranscriptFormer",
    "TranscriptFormerConfig",
    "TranscriptFormerHeads",
    "cell_representation",
    "check_sccello",
    "check_shapes",
    "gene_head",
    "has_cell_head",
    "head_targets",
    "likelihood_targets",
    "pool_mean",
    "pool_sum",
    "published_keys",
    "summed_cross_entropy",
]
