"""From counts to token sequences."""

from __future__ import annotations

from scfm.encode.order import GeneOrder, OrderEncoder
from scfm.encode.rank import RankEncoder, UpstreamDepth

__all__ = ["GeneOrder", "OrderEncoder", "RankEncoder", "UpstreamDepth"]
