"""Classes of cells, by a head on their embeddings."""

from __future__ import annotations

from copy import deepcopy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import nn

from scfm._checks import check_share, entry_of, typed
from scfm.nn import ModuleHead, TaskHead
from scfm.train.supervised._base import SupervisedModel
from scfm.train.supervised.crossval import CrossValidation, cross_validate
from scfm.train.supervised.examples import Examples
from scfm.train.supervised.inputs import VectorInputs
from scfm.train.supervised.network import VectorNetwork
from scfm.train.supervised.predictions import Prediction, probabilities
from scfm.train.supervised.prepared import Prepared
from scfm.train.supervised.setup import Setup
from scfm.train.supervised.targets import Classes, column_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

    from anndata import AnnData
    from numpy.typing import NDArray

    from scfm.train.supervised.setup import Data
    from scfm.train.supervised.split import Split

__all__ = ["EmbeddingClassifier"]


class EmbeddingClassifier(SupervisedModel):
    """Learns the labels of cells from embeddings that were computed before: seconds on a CPU.

    Needs the extra ``scfm-tools[train]``.

    Parameters
    ----------
    data
        Cells that :meth:`setup_anndata` was called with.
    head
        A module that gives ``(n_cells, n_classes)`` scores for ``(n_cells, n_features)`` standardised embeddings; a linear
        layer by default.
    dropout
        Share of the features that are left out in training.
    class_weights
        ``"balanced"``: in the loss all classes have the same weight, however many cells they have.
    registry
        Setup of a model that is loaded without data.

    Raises
    ------
    KeyError
        If a column or the embedding is missing.
    ValueError
        If there are fewer than two classes.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.tl.embed(adata, "scfm-mini")
    >>> scfm.train.EmbeddingClassifier.setup_anndata(adata, labels_key="bulk_labels", use_rep="X_scfm_mini")
    >>> model = scfm.train.EmbeddingClassifier(adata)
    >>> model.train(max_epochs=20, lr=1e-2, batch_size=128)
    >>> model.predict()["label"].iloc[0]
    'CD14+ Monocyte'
    """

    @typed
    def __init__(
        self,
        data: AnnData | None = None,
        *,
        head: nn.Module | None = None,
        dropout: float = 0.1,
        class_weights: Literal["balanced"] | None = None,
        registry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data, registry)
        given: object = head
        if given is not None and not isinstance(given, nn.Module):
            msg = f"head must be a torch.nn.Module, or None for a linear layer; got {given!r}."
            raise TypeError(msg)
        self.head = head
        self._dropout, self._balanced = dropout, class_weights == "balanced"
        if self._data is not None:
            (name,) = self.setup.columns
            column = column_of(self._data.obs, name)
            self.targets = {name: Classes.of(column, name, self.setup.unlabeled_category)}
            self.task_weights = {name: 1.0}

    @classmethod
    @typed
    def setup_anndata(
        cls,
        adata: AnnData,
        labels_key: str,
        use_rep: str,
        *,
        donors_key: str | None = None,
        unlabeled_category: str | None = None,
    ) -> None:
        """Say which embedding and which columns are trained on.

        Parameters
        ----------
        adata
            Cells, or genes (:func:`scfm.get.gene_adata`): an AnnData, whose matrix is not read.
        labels_key
            Column of ``obs`` with labels. Cells without one are not trained on.
        use_rep
            Key of the embedding in ``obsm``; ``"X"`` for ``X``.
        donors_key
            Column of ``obs`` whose values are kept whole: all cells of a donor are trained on, or none.
        unlabeled_category
            Label that stands for none, beside missing values.

        Raises
        ------
        KeyError
            If a column or the embedding is not there.
        """
        setup = Setup(
            columns=(labels_key,), use_rep=use_rep, donors_key=donors_key, unlabeled_category=unlabeled_category
        )
        cls._set_up(adata, setup)

    def as_dict(self) -> dict[str, Any]:
        """The arguments of the model, as JSON holds them."""
        head = None if self.head is None else "module"
        weights = "balanced" if self._balanced else None
        return {"arguments": {"head": head, "dropout": self._dropout, "class_weights": weights}}

    def new_module(self, tensors: Mapping[str, torch.Tensor] = MappingProxyType({})) -> VectorNetwork:
        """A new head."""
        outputs = {name: target.n_outputs for name, target in self.targets.items()}
        adata: Any = None if tensors else self._training_data()
        n_features = len(tensors["reader.mean"]) if tensors else _vectors(adata, self.setup.use_rep).shape[1]
        head: nn.Module
        if self.head is None:
            head = TaskHead("linear", n_features, outputs, self._dropout)
        else:
            head = ModuleHead(deepcopy(self.head), n_features, outputs)
        return VectorNetwork(head, n_features)

    def _prepare(
        self, stack: ExitStack, sizes: tuple[float, float], split: str | Split | None, seed: int, **how: Any
    ) -> Prepared:
        """Read the embedding, and split the cells that have a label."""
        adata: Any = self._training_data()
        vectors = _vectors(adata, self.setup.use_rep)
        examples = Examples.of(adata.obs, self.targets, self.setup, usable=np.asarray(np.isfinite(vectors).all(axis=1)))
        divided = examples.divided(sizes, split, seed)
        self.targets = examples.fitted(divided.train, balanced=self._balanced)
        module: Any = self.module
        module.head.fit(torch.from_numpy(vectors[divided.train]))
        inputs = VectorInputs(vectors, examples.learned(self.targets))
        return Prepared(inputs, inputs, divided, examples.draw_weights(divided.train) if how["balanced"] else None)

    def predictions(self, data: Data | None = None, *, threshold: float | None = None) -> dict[str, Prediction]:
        """What the model says of each cell; see :meth:`predict`."""
        self._check_if_trained(warn=False, message="The model was not trained; call train() before predict().")
        check_share("threshold", 0.0 if threshold is None else threshold)
        adata: Any = self._training_data() if data is None else data
        vectors = _vectors(adata, self.setup.use_rep)
        module: Any = self.module
        if vectors.shape[1] != module.n_features:
            msg = (
                f"{self.setup.use_rep!r} has {vectors.shape[1]} features, and the model was trained on {module.n_features}: "
                "embed both with the same model."
            )
            raise ValueError(msg)
        with torch.inference_mode():
            scores = {name: found.numpy() for name, found in module.eval()(vectors).items()}
        return {
            name: Prediction(
                target,
                adata.obs_names,
                probabilities(target, scores[name], self.temperatures_.get(name, 1.0)),
                threshold,
            )
            for name, target in self.targets.items()
        }

    @typed
    def predict(
        self, adata: AnnData | None = None, *, threshold: float | None = None, key_added: str | None = None
    ) -> pd.DataFrame:
        """Predict the label of each cell.

        Parameters
        ----------
        adata
            Cells with the same embedding; those of the training by default.
        threshold, key_added
            As for :meth:`CellClassifier.predict`.

        Returns
        -------
        As :meth:`CellClassifier.predict`. A cell without an embedding (NaN) has no label.
        """
        found = self.predictions(adata, threshold=threshold)
        if key_added is not None:
            self._stored(adata, found, key_added)
        (prediction,) = found.values()
        return prediction.frame()

    @typed
    def cross_validate(self, n_folds: int = 5, *, seed: int = 0, **how: Any) -> CrossValidation:
        """As :meth:`CellClassifier.cross_validate`."""
        adata: Any = self._training_data()
        vectors = _vectors(adata, self.setup.use_rep)
        usable = np.asarray(np.isfinite(vectors).all(axis=1))
        examples = Examples.of(adata.obs, self.targets, self.setup, usable=usable)
        codes = examples.values[self.setup.columns[0]][examples.cells]
        return cross_validate(self, examples.cells, codes, examples.donors(), n_folds=n_folds, seed=seed, **how)

    def frame_of(self, rows: NDArray[np.int64]) -> pd.DataFrame:
        """Predictions of some of the cells of the training."""
        return self.predict().iloc[rows]


def _vectors(adata: AnnData, use_rep: str | None) -> NDArray[np.float32]:
    """An embedding as an array; a ValueError if it is none."""
    stored = adata.X if use_rep == "X" else entry_of(adata.obsm, str(use_rep), "obsm")
    if sparse.issparse(stored):
        stored = stored.toarray()
    values = stored.to_numpy() if isinstance(stored, pd.DataFrame) else np.asarray(stored)
    if values.ndim != 2 or not (np.issubdtype(values.dtype, np.number) and np.isrealobj(values)):
        msg = f"{use_rep!r} must hold one vector of numbers a cell, found {values.dtype} of shape {values.shape}."
        raise ValueError(msg)
    return values.astype(np.float32)
