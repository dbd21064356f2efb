"""Classes of cells, by a fine-tuned foundation model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm.train.supervised._cell_model import CellModel, columns_of
from scfm.train.supervised.backbone import Backbone
from scfm.train.supervised.crossval import cross_validate
from scfm.train.supervised.examples import Examples
from scfm.train.supervised.setup import Setup

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    import torch
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray
    from torch import nn

    from scfm._types import Compat
    from scfm.model import FoundationModel
    from scfm.run.device import Device
    from scfm.train.adapters import LoRA
    from scfm.train.supervised.crossval import CrossValidation

__all__ = ["CellClassifier"]


@with_parameters
class CellClassifier(CellModel):
    """Learns the labels of cells.

    Needs the extra ``scfm-tools[train]``.

    Parameters
    ----------
    %(fine_tuned)s
    head
        ``"linear"``: a linear layer on the embedding of a cell. ``"bert"``: as ``BertForSequenceClassification``, with a
        dense layer and tanh on the first token. ``"attention"``: on a learned mean of all tokens. Or a module of your own
        that gives ``(n_cells, n_classes)`` scores for ``(n_cells, n_features)`` embeddings.
    class_weights
        ``"balanced"``: in the loss all classes have the same weight, however many cells they have.
    %(fine_tuning)s

    Raises
    ------
    KeyError
        If a column is missing.
    TypeError
        If the family has no layers to train.
    ValueError
        If there are fewer than two classes, no gene matches, or an argument is out of range.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.train.CellClassifier.setup_anndata(adata, labels_key="bulk_labels")
    >>> model = scfm.train.CellClassifier(adata, model="scfm-mini")
    >>> model.train(max_epochs=1, lr=1e-3)
    >>> model.predict(adata[:3]).shape
    (3, 12)
    """

    @typed
    def __init__(
        self,
        data: AnnData | MuData | str | Path | Sequence[str | Path] | None = None,
        model: str | Path | FoundationModel = "scfm-mini",
        *,
        head: Literal["linear", "bert", "attention"] | nn.Module = "linear",
        pooling: str | None = None,
        max_tokens: int | None = None,
        compat: Compat | None = None,
        freeze: int | bool | None = None,
        lora: LoRA | int | None = None,
        dropout: float = 0.02,
        class_weights: Literal["balanced"] | None = None,
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
        self._start(backbone, head)

    def _own_arguments(self) -> dict[str, Any]:
        return {"class_weights": "balanced" if self.balanced_classes else None}

    @classmethod
    @typed
    @with_parameters
    def setup_anndata(
        cls,
        adata: AnnData | MuData | str | Path | Sequence[str | Path],
        labels_key: str,
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
        labels_key
            Column of ``obs`` with labels. Cells without one are not trained on.
        %(setup_counts)s
        unlabeled_category
            Label that stands for none, beside missing values.

        Raises
        ------
        KeyError
            If a column is not there.
        """
        setup = Setup(
            columns=(labels_key,),
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
        """Predict the label of each cell.

        Parameters
        ----------
        %(predict_from)s
        threshold
            Score below which a cell is ``"unknown"``; see :meth:`threshold_for`.
        device, dtype
            As for :func:`scfm.tl.embed`, but in float32 by default: heads can be sensitive to the rounding of bfloat16.
        key_added
            Store the result, too: ``obs[key_added]``, ``obs[f"{key_added}_score"]``,
            ``obsm[f"{key_added}_probabilities"]``, ``uns[key_added]["params"]``, as :func:`scfm.tl.annotate` does.

        Returns
        -------
        ``label``, its probability ``score``, and ``probability_<class>`` for each class, by the name of the cell. Probabilities are
        calibrated on the validation cells. A cell without a gene of the model has no label.
        """
        found = self.predictions(adata, modality=modality, threshold=threshold, device=device, dtype=dtype)
        if key_added is not None:
            self._stored(adata, found, key_added)
        (prediction,) = found.values()
        return prediction.frame()

    @typed
    def cross_validate(self, n_folds: int = 5, *, seed: int = 0, **how: Any) -> CrossValidation:
        """Train for each fold of the labelled cells, donors kept whole, and predict the cells of the fold.

        Parameters
        ----------
        n_folds
            Number of folds. Within each, a tenth of the cells that are left chooses the epoch.
        seed
            Decides folds, order and first weights.
        **how
            Arguments of :meth:`train`.

        Returns
        -------
        Figures over all cells and by fold, and all predictions. The model itself is as it was.

        Raises
        ------
        ValueError
            If there are fewer donors, or cells of a class, than folds.
        """
        with self.backbone.session(self._training_data(), self.setup) as session:
            obs = columns_of(session, self.setup.all_columns)
        examples = Examples.of(obs, self.targets, self.setup, usable=np.ones(len(obs), dtype=bool))
        codes = examples.values[self.setup.columns[0]][examples.cells]
        return cross_validate(self, examples.cells, codes, examples.donors(), n_folds=n_folds, seed=seed, **how)

    def frame_of(self, rows: NDArray[np.int64]) -> pd.DataFrame:
        """Predictions of some of the cells of the training."""
        return self.predict().iloc[rows]
