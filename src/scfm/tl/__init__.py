"""Tools: embeddings of cells and genes, scores of cells, and what follows from them."""

from __future__ import annotations

from scfm.tl._annotate import annotate
from scfm.tl._attention import attention
from scfm.tl._drug_response import drug_response
from scfm.tl._embed import embed
from scfm.tl._embed_store import embed_store
from scfm.tl._embed_tokenized import embed_tokenized
from scfm.tl._evaluate import evaluate
from scfm.tl._gene_context import gene_context
from scfm.tl._gene_embeddings import gene_embeddings
from scfm.tl._marker_genes import marker_genes
from scfm.tl._merge_store import merge_store
from scfm.tl._perturb import perturb
from scfm.tl._perturb_stats import perturb_stats
from scfm.tl._perturb_store import perturb_store
from scfm.tl._predict import predict
from scfm.tl._predict_genes import predict_genes
from scfm.tl._prompt_genes import prompt_genes
from scfm.tl._score import score
from scfm.tl._tokenize import tokenize

__all__ = [
    "annotate",
    "attention",
    "drug_response",
    "embed",
    "embed_store",
    "embed_tokenized",
    "evaluate",
    "gene_context",
    "gene_embeddings",
    "marker_genes",
    "merge_store",
    "perturb",
    "perturb_stats",
    "perturb_store",
    "predict",
    "predict_genes",
    "prompt_genes",
    "score",
    "tokenize",
]


def __dir__() -> list[str]:
    return sorted(__all__)
