"""From counts to token sequences."""

from __future__ import annotations

from scfm.encode.rank import RankEncoder, UpstreamDepth

__all__ = ["RankEncoder", "UpstreamDepth"]
