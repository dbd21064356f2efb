"""Look at data, and make what a model needs, before it is embedded."""

from __future__ import annotations

from scfm.pp._match import match_genes
from scfm.pp._orthologs import to_orthologs
from scfm.pp._protein import protein_vectors

__all__ = ["match_genes", "protein_vectors", "to_orthologs"]


def __dir__() -> list[str]:
    return sorted(__all__)
