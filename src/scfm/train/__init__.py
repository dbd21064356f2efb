"""Pretraining and fine-tuning, with the extra ``scfm-tools[train]``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scfm.train._fine_tune import fine_tune
from scfm.train._pretrain import pretrain
from scfm.train.adapters import LoRA
from scfm.train.projection import LinearProjection, linear_projection

if TYPE_CHECKING:
    from scfm.train.supervised import (
        CellClassifier,
        CellRegressor,
        CrossValidation,
        EmbeddingClassifier,
        GeneClassifier,
        MultiTaskClassifier,
        Search,
        load,
        repeat,
        search,
    )

__all__ = [
    "CellClassifier",
    "CellRegressor",
    "CrossValidation",
    "EmbeddingClassifier",
    "GeneClassifier",
    "LinearProjection",
    "LoRA",
    "MultiTaskClassifier",
    "Search",
    "fine_tune",
    "linear_projection",
    "load",
    "pretrain",
    "repeat",
    "search",
]

_SUPERVISED = frozenset(__all__) - {"LinearProjection", "LoRA", "fine_tune", "linear_projection", "pretrain"}


def __getattr__(name: str) -> Any:
    """Import what needs scvi-tools on first use; it takes seconds, and verbs that train nothing do without it."""
    if name not in _SUPERVISED:
        msg = f"module 'scfm.train' has no attribute {name!r}"
        raise AttributeError(msg)
    try:
        return getattr(import_module("scfm.train.supervised"), name)
    except ModuleNotFoundError as error:
        from scfm._package import pip_install

        package = (error.name or "scfm").partition(".")[0]
        if package == "scfm":
            raise
        msg = f"scfm.train.{name} needs the package {package}: {pip_install('train')}."
        raise ImportError(msg) from error


def __dir__() -> list[str]:
    return sorted(__all__)
