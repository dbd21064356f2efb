"""Several columns at once, by one fine-tuned foundation model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._text import some
from scfm.train.supervised._cell_model import CellModel
from scfm.train.supervised.backbone import Backbone
from scfm.train.supervised.setup import Setup
from scfm.train.supervised.targets import Classes, Numbers, Target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from anndata import AnnData
    from mudata import MuData

    from scfm._types import Compat
    from scfm.model import FoundationModel
    from scfm.run.device import Device
    from scfm.train.adapters import LoRA

__all__ = ["MultiTaskClassifier"]


@with_parameters
class MultiTaskClassifier(CellModel):
    """Learns several columns of ``obs`` at once: classes, or numbers where a column holds floating-point values.

    A cell that lacks one of them is trained on by the others. Needs the extra ``scfm-tools[train]``.

    Parameters
    ----------
    %(fine_tuned)s
    head
        ``"attention"``: a learned mean of all tokens of a cell, without padding, for all tasks. ``"linear"``,
        ``"bert"``: as for :class:`CellClassifier`. ``"first"``: on the first token, as published models have it.
    task_weights
        Weight of each column in the loss; all alike by default. They are scaled to add up to the number of columns.
    class_weights
        ``"balanced"``: in the loss all classes of a column have the same weight.
    %(fine_tuning)s

    Raises
    ------
    KeyError
        If a column is missing.
    TypeError
        If the family has no layers to train.
    ValueError
        If a column has fewer than two classes, no gene matches, or an argument is out of range.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> columns = ["bulk_labels", "phase"]
    >>> scfm.train.MultiTaskClassifier.setup_anndata(adata, labels_keys=columns)
    >>> model = scfm.train.MultiTaskClassifier(adata, model="scfm-mini", freeze=True)
    >>> model.train(max_epochs=1, lr=1e-3)
    >>> model.predict(adata[:3])[["bulk_labels_label", "phase_label"]].shape
    (3, 2)
    """

    @typed
    def __init__(
        self,
        data: AnnData | MuData | str | Path | Sequence[str | Path] | None = None,
        model: str | Path | FoundationModel = "scfm-mini",
        *,
        head: Literal["attention", "linear", "bert", "first"] = "attention",
        task_weights: Mapping[str, float] | None = None,
        class_weights: Literal["balanced"] | None = None,
        pooling: str | None = None,
        max_tokens: int | None = None,
        compat: Compat | None = None,
        freeze: int | bool | None = None,
        lora: LoRA | int | None = None,
        dropout: float = 0.02,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data, registry)
        backbone = Backbone.of(
            model,
            lora,
            freeze=freeze,
            dropout=dropout,
            pooling=pooling,
            max_tokens=max_tokens,
            compat=compat,
            options=options,
        )
        self.balanced_classes = class_weights == "balanced"
        given = dict(task_weights or {})
        unknown = [name for name in given if name not in self.setup.columns]
        if unknown or not all(weight > 0 for weight in given.values()):
            msg = f"task_weights must give each of {', '.join(self.setup.columns)} a weight above 0, got {given}."
            raise ValueError(msg)
        self._start(backbone, head)
        weights = {name: float(given.get(name, 1.0)) for name in self.setup.columns}
        self.task_weights = {name: one * len(weights) / sum(weights.values()) for name, one in weights.items()}

    def _target(self, column: pd.Series, name: str) -> Target:
        if pd.api.types.is_float_dtype(column.dtype):
            return Numbers.of(Numbers().values(column, name), name)
        return Classes.of(column, name, self.setup.unlabeled_category)

    def _own_arguments(self) -> dict[str, Any]:
        return {
            "class_weights": "balanced" if self.balanced_classes else None,
            "task_weights": dict(self.task_weights),
        }

    @classmethod
    @typed
    @with_parameters
    def setup_anndata(
        cls,
        adata: AnnData | MuData | str | Path | Sequence[str | Path],
        labels_keys: Sequence[str],
        *,
        layer: str | None = None,
        use_raw: bool | None = None,
        gene_key: str | None = None,
        modality: str | None = None,
        donors_key: str | None = None,
        unlabeled_category: str | None = None,
    ) -> None:
        """Say which columns and which matrix are trained on.

        Parameters
        ----------
        %(setup_data)s
        labels_keys
            Columns of ``obs``.
        %(setup_counts)s
        unlabeled_category
            Label that stands for none, beside missing values.

        Raises
        ------
        KeyError
            If a column is not there.
        ValueError
            If a column is named twice, or as a result of another one, or none is.
        """
        names = list(labels_keys)
        repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if repeated or not names:
            msg = f"labels_keys must be different columns, one at least; found {some(repeated) or 'none'}."
            raise ValueError(msg)
        taken = [(one, other) for one in names for other in names if other in (f"{one}_score", f"{one}_probabilities")]
        if taken:
            msg = f"Results of {taken[0][0]!r} are stored under {taken[0][1]!r} too, which is a column of its own; rename it."
            raise ValueError(msg)
        setup = Setup(
            columns=tuple(names),
            layer=layer,
            use_raw=use_raw,
            gene_key=gene_key,
            modality=modality,
            donors_key=donors_key,
            unlabeled_category=unlabeled_category,
        )
        cls._set_up(adata, setup)

    @typed
    @with_parameters
    def predict(
        self,
        adata: AnnData | MuData | str | Path | Sequence[str | Path] | None = None,
        *,
        modality: str | None = None,
        threshold: float | None = None,
        device: Device | Sequence[Device] | None = None,
        dtype: str | torch.dtype | None = None,
        key_added: str | None = None,
    ) -> pd.DataFrame:
        """Predict all columns.

        Parameters
        ----------
        %(predict_from)s
        threshold
            Score below which a cell is ``"unknown"`` in a column.
        device, dtype
            As for :func:`scfm.tl.embed`, but in float32 by default: heads can be sensitive to the rounding of bfloat16.
        key_added
            Store the results of each column as :class:`CellClassifier` does, under ``f"{key_added}_<column>"``.

        Returns
        -------
        For each column what :meth:`CellClassifier.predict` or :meth:`CellRegressor.predict` gives, its names preceded by
        that of the column and an underscore.
        """
        found = self.predictions(adata, modality=modality, threshold=threshold, device=device, dtype=dtype)
        if key_added is not None:
            self._stored(adata, found, key_added)
        return pd.concat([one.frame(f"{name}_") for name, one in found.items()], axis=1)
