"""Look at data before it is embedded."""

from __future__ import annotations

from scfm.pp._match import match_genes

__all__ = ["match_genes"]
