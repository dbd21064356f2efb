"""From counts to token sequences."""

from __future__ import annotations

from scfm.encode.order import GeneOrder, OrderEncoder
from scfm.encode.rank import Depth, ObsDepth, RankEncoder, VocabularyDepth

__all__ = ["Depth", "GeneOrder", "ObsDepth", "OrderEncoder", "RankEncoder", "VocabularyDepth"]
