"""The networks, in plain torch: packed tokens in, hidden states out, pooled to one vector per cell or gene."""

from .attention import AttentionPath, Lengths, Packing
from .bert import BertConfig, BertEncoder, BertLayer
from .heads import MaskedLMHead
from .pooling import GeneMeans, pool_first, pool_mean
from .published import check_shapes, published_keys

__all__ = [
    "AttentionPath",
    "BertConfig",
    "BertEncoder",
    "BertLayer",
    "GeneMeans",
    "Lengths",
    "MaskedLMHead",
    "Packing",
    "check_shapes",
    "pool_first",
    "pool_mean",
    "published_keys",
]
