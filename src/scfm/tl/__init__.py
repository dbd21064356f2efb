"""Tools: embeddings of cells and genes, and scores of cells."""

from __future__ import annotations

from scfm.tl._embed import embed
from scfm.tl._embed_store import embed_store
from scfm.tl._gene_embeddings import gene_embeddings
from scfm.tl._score import score

__all__ = ["embed", "embed_store", "gene_embeddings", "score"]
