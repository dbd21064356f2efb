"""Classes of genes, from their states in cells."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfm._checks import check_least, typed
from scfm._docs import with_parameters
from scfm._text import some
from scfm._warn import warn
from scfm.genes import find_columns
from scfm.nn import TaskHead
from scfm.run.device import resolve_device
from scfm.train.supervised._base import SupervisedModel
from scfm.train.supervised.backbone import Backbone
from scfm.train.supervised.crossval import CrossValidation, cross_validate
from scfm.train.supervised.inputs import TokenInputs, TokenTargets
from scfm.train.supervised.network import SupervisedNetwork
from scfm.train.supervised.predictions import Prediction
from scfm.train.supervised.prepared import Prepared
from scfm.train.supervised.scores import GeneProbabilities
from scfm.train.supervised.setup import Setup
from scfm.train.supervised.split import Split, split_cells
from scfm.train.supervised.targets import Classes
from scfm.train.supervised.tokens import encoded_cells, training_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    import torch
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scfm._types import Compat
    from scfm.model import FoundationModel
    from scfm.model.session import CountSession
    from scfm.run.device import Device
    from scfm.train.adapters import LoRA
    from scfm.train.supervised.setup import Data

__all__ = ["GeneClassifier"]

TARGET = "gene_class"


@with_parameters
class GeneClassifier(SupervisedModel):
    """Learns classes of genes from their states in cells, as Geneformer's classification of genes.

    Genes, not cells, are divided among training and validation: a gene that judges the model is never trained on, in no cell.
    Needs the extra ``scfm-tools[train]``.

    Parameters
    ----------
    %(fine_tuned)s
    gene_sets
        Names of classes, and the genes of each by any of their names. A gene is in one class.
    n_cells
        Cells that are drawn for training, by its seed; all by default.
    class_weights
        ``"balanced"``: in the loss all classes have the same weight, however often their genes are expressed.
    %(fine_tuning)s

    Raises
    ------
    TypeError
        If the family has no layers to train.
    ValueError
        If there are fewer than two classes with two genes of the model each, a gene is in two classes, or an argument is
        out of range.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.train.GeneClassifier.setup_anndata(adata)
    >>> sets = {
    ...     "MHC": ["HLA-DRA", "HLA-DRB1", "HLA-DPA1", "HLA-DPB1"],
    ...     "mitochondrion": ["NDUFA4", "COX17", "ATP5B", "COX7C"],
    ... }
    >>> model = scfm.train.GeneClassifier(adata, sets, model="scfm-mini", freeze=True, n_cells=50)
    >>> model.train(max_epochs=1, lr=1e-3, train_size=0.5)
    >>> model.predict().loc["HLA-DRA"].index[:2].tolist()
    ['label', 'score']
    """

    # probabilities are means over cells, of which a gene has as many as express it
    calibrates = False

    @typed
    def __init__(
        self,
        data: AnnData | MuData | str | Path | None = None,
        gene_sets: Mapping[str, Sequence[str]] | None = None,
        model: str | Path | FoundationModel = "scfm-mini",
        *,
        n_cells: int | None = None,
        class_weights: Literal["balanced"] | None = None,
        max_tokens: int | None = None,
        compat: Compat | None = None,
        freeze: int | bool | None = None,
        lora: LoRA | int | None = None,
        dropout: float = 0.02,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data, registry)
        self.backbone = Backbone.of(
            model,
            lora,
            freeze=freeze,
            dropout=dropout,
            pooling=None,
            max_tokens=max_tokens,
            compat=compat,
            options=options,
        )
        self._n_cells, self._balanced = n_cells, class_weights == "balanced"
        check_least("n_cells", 1 if n_cells is None else n_cells)
        self._tuned: FoundationModel | None = None
        self.gene_sets = {str(name): list(genes) for name, genes in (gene_sets or {}).items()}
        if self._data is not None:
            with self.backbone.base.count_session(self._data, self.backbone.arguments(self.setup)) as session:
                self.genes = self._table(session)
            self.targets, self.task_weights = {TARGET: Classes(tuple(sorted(self.gene_sets)))}, {TARGET: 1.0}

    @classmethod
    @typed
    @with_parameters
    def setup_anndata(
        cls,
        adata: AnnData | MuData | str | Path,
        *,
        layer: str | None = None,
        use_raw: bool | None = None,
        gene_key: str | None = None,
        modality: str | None = None,
    ) -> None:
        """Say which matrix is trained on.

        Parameters
        ----------
        %(setup_data)s
        layer, use_raw, gene_key, modality
            As for :func:`scfm.tl.embed`.
        """
        cls._set_up(adata, Setup(layer=layer, use_raw=use_raw, gene_key=gene_key, modality=modality))

    def _table(self, session: CountSession) -> pd.DataFrame:
        """Token and class of each gene by its name in the data; warns of genes that the data or the model do not have."""
        if len(self.gene_sets) < 2:
            msg = f"gene_sets has {len(self.gene_sets)} classes; a classifier needs two at least, as {{'one': [...], 'other': [...]}}."
            raise ValueError(msg)
        parts, lost = [], []
        for code, name in enumerate(sorted(self.gene_sets)):
            genes, known = self.gene_sets[name], session.genes.tokens
            columns = find_columns(genes, session.source.var, known, session.model.vocabulary)
            tokens = np.where(columns >= 0, known[np.maximum(columns, 0)], -1)
            lost += [gene for gene, token in zip(genes, tokens.tolist(), strict=True) if token < 0]
            there = columns[tokens >= 0]
            parts.append(pd.DataFrame({"token": known[there], "code": code}, index=session.source.var.index[there]))
        if lost:
            warn(f"{len(lost)} genes of gene_sets are not in the data or not known to the model, such as {some(lost)}.")
        table = pd.concat(parts).drop_duplicates()
        _check_table(table, sorted(self.gene_sets))
        return table

    @property
    def foundation_model(self) -> FoundationModel:
        """The model with the trained weights, without the head, which every verb takes."""
        if self._tuned is None:
            name = f"{self.backbone.base.card.id}-{type(self).__name__}"
            self._tuned = self.backbone.tuned(self.module.network, name)  # type: ignore[arg-type]
        return self._tuned

    def as_dict(self) -> dict[str, Any]:
        """The base, and the arguments of the model, as JSON holds them."""
        described = self.backbone.as_dict()
        base, _ = described.pop("base"), described.pop("pooling")
        own = {
            "gene_sets": self.gene_sets,
            "n_cells": self._n_cells,
            "class_weights": "balanced" if self._balanced else None,
        }
        return {"base": base, "arguments": {**described, **own}}

    def new_module(self, tensors: Mapping[str, torch.Tensor] = MappingProxyType({})) -> SupervisedNetwork:
        """A network with pretrained weights and a new head on each token."""
        self._tuned = None
        recipe = self.backbone.training_recipe()
        outputs = {name: target.n_outputs for name, target in self.targets.items()}
        head = TaskHead("genes", recipe.n_features, outputs, self.backbone.dropout)
        return SupervisedNetwork(recipe, self.backbone.run_options, self.backbone.network(recipe), head)

    def _prepare(
        self, stack: ExitStack, sizes: tuple[float, float], split: str | Split | None, seed: int, **how: Any
    ) -> Prepared:
        """Encode the cells, and divide the genes."""
        if how["balanced"] or isinstance(split, str):
            msg = "balanced= and a column of obs as split= are for cells; genes are divided here: use class_weights='balanced' and train_size=."
            raise ValueError(msg)
        self.backbone.warn_of_labels()
        data, arguments = self._training_data(), self.backbone.arguments(self.setup)
        session = stack.enter_context(self.backbone.base.count_session(data, arguments))
        cells = stack.enter_context(encoded_cells(session, how["cache"]))
        rows = np.flatnonzero(np.diff(cells.offsets) > 0)
        if self._n_cells is not None and self._n_cells < len(rows):
            rows = np.sort(np.random.default_rng(seed).choice(rows, self._n_cells, replace=False))
        codes = self.genes["code"].to_numpy(np.int64)
        genes = split or split_cells(
            np.arange(len(codes)), train_size=sizes[0], validation_size=sizes[1], strata=codes, seed=seed
        )
        if not len(genes.validation) and sizes[1] > 1e-9:
            msg = f"There are no genes to validate with: {len(genes.train)} are trained on. Lower train_size, or set validation_size=0."
            raise ValueError(msg)
        parts = {"train": genes.train, "validation": genes.validation, "test": genes.test}
        part = pd.concat([pd.Series(name, index=at) for name, at in parts.items()]).sort_index()
        self.genes = self.genes.assign(part=part.to_numpy())  # a copy: cross-validation shares the table
        size = session.model.vocabulary.size
        training, validation = (self._codes(part, size) for part in (genes.train, genes.validation))
        (target,) = self.targets.values()
        assert isinstance(target, Classes)
        weights = (
            tuple(target.balanced(training[cells.tokens[cells.tokens < size]]).tolist()) if self._balanced else None
        )
        self.targets = {TARGET: replace(target, weights=weights)}
        device = resolve_device("cpu" if how["accelerator"] == "cpu" else None)
        budget, padded = how["batch_tokens"] or training_tokens(device), device.type != "cpu"
        judging = rows if len(genes.validation) else rows[:0]
        return Prepared(
            TokenInputs(cells, TokenTargets(TARGET, training), budget, padded),
            TokenInputs(cells, TokenTargets(TARGET, validation), budget, padded),
            Split(rows, judging, rows[:0]),
            None,
        )

    def _codes(self, genes: NDArray[np.int64], vocab_size: int) -> NDArray[np.int64]:
        """Class by token of some of the genes, −1 for all others."""
        codes = np.full(vocab_size, -1, dtype=np.int64)
        chosen = self.genes.iloc[genes]
        codes[chosen["token"]] = chosen["code"]
        return codes

    def predictions(
        self,
        data: Data | None = None,
        *,
        modality: str | None = None,
        genes: Sequence[str] | None = None,
        device: Device | Sequence[Device] | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> dict[str, Prediction]:
        """What the model says of each gene; see :meth:`predict`."""
        self._check_if_trained(warn=False, message="The model was not trained; call train() before predict().")
        setup = self.setup if data is None else replace(self.setup, modality=modality)
        arguments = replace(self.backbone.arguments(setup), device=device, dtype=dtype or "float32")
        (target,) = self.targets.values()
        given: Any = self._training_data() if data is None else data
        with self.foundation_model.count_session(given, arguments) as session:
            columns = session.columns_of(genes)
            tokens, head = session.genes.tokens[columns], self.module.head
            task = GeneProbabilities(session.model, session.options, head, tokens, target.n_outputs)  # type: ignore[arg-type]
            session.run(task)
            names = session.source.var.index[columns]
        return {TARGET: Prediction(target, names, task.means.values()[:, 0])}

    @typed
    @with_parameters
    def predict(
        self,
        adata: AnnData | MuData | str | Path | None = None,
        *,
        modality: str | None = None,
        genes: Sequence[str] | None = None,
        device: Device | Sequence[Device] | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> pd.DataFrame:
        """Predict the class of each gene: the mean of its probabilities over the cells that express it.

        Parameters
        ----------
        %(predict_from)s
        %(genes)s
        device, dtype
            As for :func:`scfm.tl.embed`, but in float32 by default: heads can be sensitive to the rounding of bfloat16.

        Returns
        -------
        ``label``, its probability ``score``, and ``probability_<class>`` for each class, by the name of the gene. A gene that no
        cell expresses has no label.
        """
        (prediction,) = self.predictions(adata, modality=modality, genes=genes, device=device, dtype=dtype).values()
        return prediction.frame()

    @typed
    def cross_validate(self, n_folds: int = 5, *, seed: int = 0, **how: Any) -> CrossValidation:
        """Train for each fold of the genes, and predict the genes of the fold, which no cell of the training showed.

        Parameters
        ----------
        n_folds
            Number of folds. Within each, a tenth of the genes that are left chooses the epoch.
        seed
            Decides folds, order and first weights.
        **how
            Arguments of :meth:`train`.

        Returns
        -------
        Figures over all genes and by fold, and all predictions. The model itself is as it was.

        Raises
        ------
        ValueError
            If a class has fewer genes than there are folds.
        """
        codes = self.genes["code"].to_numpy(np.int64)
        return cross_validate(self, np.arange(len(codes)), codes, None, n_folds=n_folds, seed=seed, **how)

    def frame_of(self, rows: NDArray[np.int64]) -> pd.DataFrame:
        """Predictions of some of the genes of ``gene_sets``."""
        return self.predict(genes=self.genes.index[rows].tolist())


def _check_table(table: pd.DataFrame, labels: Sequence[str]) -> None:
    """A ValueError if there is a class with fewer than two genes, or a gene in two classes."""
    twice = table.index[table.index.duplicated() | table["token"].duplicated()]
    if len(twice):
        msg = f"{twice[0]!r} is in two classes of gene_sets, or the same gene by two names; name each gene once."
        raise ValueError(msg)
    counts = table["code"].value_counts()
    few = [f"{label!r} has {counts.get(code, 0)}" for code, label in enumerate(labels) if counts.get(code, 0) < 2]
    if few:
        msg = f"Each class of gene_sets needs two genes of the data that the model knows; {some(few)}."
        raise ValueError(msg)
