"""Predictions as tables, and as fields of an AnnData."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._keys import PARAMS, annotation_keys, check_own
from scfm.train.supervised.targets import Classes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from scfm.train.supervised.targets import Target

__all__ = ["UNKNOWN", "Prediction", "check_free", "probabilities", "store"]

UNKNOWN = "unknown"
"""Label of a cell whose score is below the threshold."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one target, for each cell or gene."""

    target: Target
    names: pd.Index
    values: NDArray[np.float32]
    """Probabilities, shape ``(n, n_classes)``, or numbers, ``(n, 1)``; NaN where nothing is known."""
    threshold: float | None = None
    """Score below which a label is not given."""

    def labels(self) -> pd.Categorical[Any]:
        """The most probable class of each; missing where nothing is known."""
        assert isinstance(self.target, Classes)
        there = np.isfinite(self.values).all(axis=1)
        codes = np.where(there, np.nan_to_num(self.values).argmax(axis=1), -1)
        categories = list(self.target.labels)
        if self.threshold is not None:
            categories += [] if UNKNOWN in categories else [UNKNOWN]
            codes = np.where(there & (self.scores() < self.threshold), categories.index(UNKNOWN), codes)
        return pd.Categorical.from_codes(codes, categories)  # type: ignore[call-overload]

    def scores(self) -> NDArray[np.float32]:
        """Probability of the most probable class."""
        return np.asarray(self.values.max(axis=1))

    def frame(self, prefix: str = "") -> pd.DataFrame:
        """A table: label, score and the probability of each class, or the number."""
        if not isinstance(self.target, Classes):
            return pd.DataFrame({f"{prefix}value": self.values[:, 0]}, index=self.names)
        columns = {f"{prefix}label": self.labels(), f"{prefix}score": self.scores()}
        each = {f"{prefix}probability_{label}": self.values[:, at] for at, label in enumerate(self.target.labels)}
        return pd.DataFrame(columns | each, index=self.names)

    def fields(self, key: str, params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Fields of an AnnData by slot and name."""
        keys = annotation_keys(key)
        if not isinstance(self.target, Classes):
            return {"obs": {key: self.values[:, 0]}, "uns": {key: {PARAMS: dict(params)}}}
        said = {"labels": np.array(self.target.labels, dtype=object), "threshold": self.threshold}
        return {
            "obs": {keys.label: self.labels(), keys.score: self.scores()},
            "obsm": {keys.probabilities: self.values},
            "uns": {keys.uns: {PARAMS: {**params, **said}}},
        }


def probabilities(target: Target, scores: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Softmax of scores over a temperature, or numbers in their own unit."""
    from scipy.special import softmax

    if isinstance(target, Classes):
        return np.asarray(softmax(scores / temperature, axis=1), dtype=np.float32)
    return np.asarray(scores * target.sd + target.mean, dtype=np.float32)


def check_free(adata: AnnData, key: str, function: str) -> None:
    """A ValueError if fields of this name hold something that is no earlier result of the function."""
    keys = annotation_keys(key)
    places = {"obs": (keys.label, keys.score), "obsm": (keys.probabilities,), "uns": (keys.uns,)}
    taken = [f"{slot}[{name!r}]" for slot, names in places.items() for name in names if name in getattr(adata, slot)]
    check_own(function, taken, adata.uns.get(keys.uns))


def store(adata: AnnData, fields: Mapping[str, Mapping[str, Any]]) -> None:
    """Put fields into an AnnData."""
    for slot, entries in fields.items():
        for name, value in entries.items():
            getattr(adata, slot)[name] = value
