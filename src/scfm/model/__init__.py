"""The models: load one, list them, convert published weights."""

from __future__ import annotations

from scfm._types import CountBlock, TokenBatch, TokenBlock
from scfm.model._base import Embedding, FoundationModel
from scfm.model._cache import list_cached, prune_cache, verify_cached
from scfm.model._convert import convert
from scfm.model._fetch import fetch, fetch_gene_vectors
from scfm.model._load import load, load_recipe
from scfm.model.registry import list_models, register

__all__ = [
    "CountBlock",
    "Embedding",
    "FoundationModel",
    "TokenBatch",
    "TokenBlock",
    "convert",
    "fetch",
    "fetch_gene_vectors",
    "list_cached",
    "list_models",
    "load",
    "load_recipe",
    "prune_cache",
    "register",
    "verify_cached",
]


def __dir__() -> list[str]:
    return sorted(__all__)
