"""The networks, in plain torch: packed tokens in, hidden states out, pooled to one vector per cell or gene."""

from .attention import AttentionPath, Lengths, Packing
from .bert import BertConfig, BertEncoder, BertLayer
from .causal import CausalPath
from .count_heads import GeneScores, TranscriptFormerHeads
from .gene_rows import GeneRows, GeneVectors
from .heads import MaskedLMHead
from .pooling import GeneMeans, pool_first, pool_mean, pool_sum
from .published import check_shapes, published_keys
from .sccello import ProjectionHead, ScCelloNetwork, check_sccello
from .transcriptformer import TranscriptFormer, TranscriptFormerConfig

__all__ = [
    "AttentionPath",
    "BertConfig",
    "BertEncoder",
    "BertLayer",
    "CausalPath",
    "GeneMeans",
    "GeneRows",
    "GeneScores",
    "GeneVectors",
    "Lengths",
    "MaskedLMHead",
    "Packing",
    "ProjectionHead",
    "ScCelloNetwork",
    "TranscriptFormer",
    "TranscriptFormerConfig",
    "TranscriptFormerHeads",
    "check_sccello",
    "check_shapes",
    "pool_first",
    "pool_mean",
    "pool_sum",
    "published_keys",
]
