"""Data to try things on, offline, and published data sets to fetch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scfm.datasets._drug_response import drug_response
from scfm.datasets._pbmc68k import pbmc68k
from scfm.datasets._synthetic import synthetic
from scfm.datasets._tokenized import tokenized

if TYPE_CHECKING:
    from scfm.datasets import cellxgene

__all__ = ["cellxgene", "drug_response", "pbmc68k", "synthetic", "tokenized"]


def __getattr__(name: str) -> Any:
    """Import on first use what brings libraries for the network along."""
    if name == "cellxgene":
        return import_module("scfm.datasets.cellxgene")
    msg = f"module 'scfm.datasets' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
