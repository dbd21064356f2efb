"""Single-cell foundation models on AnnData: embeddings in ``obsm``, provenance in ``uns``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scfm import accessor as _accessor
from scfm._package import version_of as _version_of

if TYPE_CHECKING:
    from scfm import datasets, get, metrics, model, nn, ontology, pl, pp, testing, tl, train
    from scfm._settings import settings

__all__ = [
    "datasets",
    "get",
    "metrics",
    "model",
    "nn",
    "ontology",
    "pl",
    "pp",
    "settings",
    "testing",
    "tl",
    "train",
]

__version__ = _version_of("scfm")

_SUBPACKAGES = frozenset(__all__) - {"settings"}


def __getattr__(name: str) -> Any:
    """Import parts on first use, so that ``import scfm`` loads neither torch nor scanpy."""
    if name in _SUBPACKAGES:
        return import_module(f"scfm.{name}")
    if name == "settings":
        from scfm._settings import settings

        return settings
    msg = f"module 'scfm' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
