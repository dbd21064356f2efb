"""What a model learns to predict: classes or numbers of cells, and how far predictions are off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd

from scfm._checks import entry_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Classes", "Numbers", "Target", "target_of"]

MISSING = -1
"""Code of a cell without a label."""


@dataclass(frozen=True)
class Classes:
    """A label of each cell or gene.

    Parameters
    ----------
    labels
        Classes, in sorted order, which is that of the outputs.
    weights
        Weight of each class in the loss; all alike by default.
    """

    kind: ClassVar[str] = "classes"
    labels: tuple[str, ...]
    weights: tuple[float, ...] | None = None

    @classmethod
    def of(cls, column: pd.Series, name: str, unlabeled: str | None = None) -> Self:
        """The classes of a column of ``obs``; a ValueError if there are fewer than two."""
        texts = _texts(column, name, unlabeled)
        labels = sorted(set(texts.dropna()))
        if len(labels) < 2:
            found = f"the label {labels[0]!r} only" if labels else "no label"
            msg = f"obs[{name!r}] has {found}; a classifier needs two classes at least."
            raise ValueError(msg)
        return cls(tuple(labels))

    @property
    def n_outputs(self) -> int:
        """One score a class."""
        return len(self.labels)

    def values(self, column: pd.Series, name: str, unlabeled: str | None = None) -> NDArray[np.int64]:
        """Code of each cell, −1 for one without a label; a ValueError for a label that is not known."""
        texts = _texts(column, name, unlabeled)
        codes = pd.Index(self.labels).get_indexer(pd.Index(texts))
        unknown = sorted(set(texts[(codes < 0) & texts.notna().to_numpy()]))
        if unknown:
            msg = (
                f"obs[{name!r}] has the label {unknown[0]!r}, which the model has not seen; it knows "
                f"{', '.join(map(repr, self.labels))}."
            )
            raise ValueError(msg)
        return codes.astype(np.int64)

    def known(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Which cells have a label."""
        return np.asarray(values >= 0)

    def scaled(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Codes, as the network learns them."""
        return codes

    def balanced(self, codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Weight of each class that gives all classes of some cells the same influence; their mean over cells is 1."""
        counts = np.bincount(codes[codes >= 0], minlength=len(self.labels))
        return counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))

    def loss(self, scores: Tensor, values: Tensor) -> Tensor:
        """Sum of the cross-entropy over what has a label, by the weights of the classes."""
        from torch.nn import functional as F

        return F.cross_entropy(scores, values, self._weights_on(scores), ignore_index=MISSING, reduction="sum")

    def count(self, values: Tensor) -> Tensor:
        """What a sum of losses is divided by: the number of labels, or their weight."""
        known, weights = values >= 0, self._weights_on(values)
        return known.sum().float() if weights is None else weights[values[known]].sum()

    def _weights_on(self, like: Tensor) -> Tensor | None:
        import torch

        return None if self.weights is None else torch.tensor(self.weights, device=like.device)

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"kind": self.kind, "labels": list(self.labels), "weights": self.weights and list(self.weights)}


@dataclass(frozen=True)
class Numbers:
    """A number of each cell, which is standardised for the network.

    Parameters
    ----------
    mean, sd
        Of the cells that are trained on.
    """

    kind: ClassVar[str] = "numbers"
    mean: float = 0.0
    sd: float = 1.0

    @property
    def n_outputs(self) -> int:
        """One number."""
        return 1

    @classmethod
    def of(cls, values: NDArray[np.float64], name: str) -> Self:
        """Mean and standard deviation of some cells; a ValueError if none has a number."""
        there = values[np.isfinite(values)]
        if not len(there):
            msg = f"obs[{name!r}] holds no number."
            raise ValueError(msg)
        return cls(float(there.mean()), float(there.std()) or 1.0)

    def values(self, column: pd.Series, name: str, unlabeled: str | None = None) -> NDArray[np.float64]:
        """The number of each cell, NaN where there is none; a ValueError for something else than finite numbers."""
        if not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
            msg = f"obs[{name!r}] holds {column.dtype} values; numbers are needed."
            raise ValueError(msg)
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isinf(values).any():
            msg = f"obs[{name!r}] holds infinite values in {int(np.isinf(values).sum())} cells; set them to NaN to leave them out."
            raise ValueError(msg)
        return values

    def known(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Which cells have a number."""
        return np.asarray(np.isfinite(values))

    def scaled(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Standardised, as the network learns them; before float32, which does not tell large numbers apart."""
        return ((values - self.mean) / self.sd).astype(np.float32)

    def loss(self, scores: Tensor, values: Tensor) -> Tensor:
        """Sum of the squared errors of standardised numbers."""
        known = values.isfinite()
        return (scores[known, 0] - values[known]).square().sum()

    def count(self, values: Tensor) -> Tensor:
        """What a sum of losses is divided by: the number of cells."""
        return values.isfinite().sum().float()

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"kind": self.kind, "mean": self.mean, "sd": self.sd}


Target = Classes | Numbers


def target_of(stored: Mapping[str, Any]) -> Target:
    """The target that :meth:`Classes.as_dict` or :meth:`Numbers.as_dict` describes."""
    if stored["kind"] == Numbers.kind:
        return Numbers(float(stored["mean"]), float(stored["sd"]))
    weights = stored.get("weights")
    return Classes(tuple(map(str, stored["labels"])), None if weights is None else tuple(map(float, weights)))


def column_of(obs: pd.DataFrame, name: str) -> pd.Series:
    """A column of ``obs``; a KeyError that lists those that are there."""
    column: pd.Series = entry_of(obs, name, "obs")
    return column


def _texts(column: pd.Series, name: str, unlabeled: str | None) -> pd.Series:
    """Labels as text, missing where there is none."""
    if pd.api.types.is_float_dtype(column.dtype) and column.notna().any():
        msg = f"obs[{name!r}] holds {column.dtype} values; labels are text or categories (scfm.train.CellRegressor predicts numbers)."
        raise ValueError(msg)
    plain = column.astype(object)
    texts = plain.where(plain.isna(), plain.astype(str))
    if unlabeled is not None:
        texts = texts.mask(texts == unlabeled, None)
    empty = sorted({text for text in texts.dropna() if text.strip().lower() in ("", "nan")})
    if empty:
        msg = f"obs[{name!r}] has the label {empty[0]!r}, which stands for none: name it by unlabeled_category={empty[0]!r}."
        raise ValueError(msg)
    return texts
