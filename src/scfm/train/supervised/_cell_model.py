"""A foundation model with a head for columns of ``obs``."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from scfm._checks import check_share, typed
from scfm.nn import ModuleHead, TaskHead
from scfm.run.device import resolve_device
from scfm.train.supervised._base import SupervisedModel
from scfm.train.supervised.examples import Examples
from scfm.train.supervised.inputs import CellTargets, TokenInputs
from scfm.train.supervised.judging import judge
from scfm.train.supervised.network import SupervisedNetwork
from scfm.train.supervised.predictions import Prediction, probabilities
from scfm.train.supervised.prepared import Prepared
from scfm.train.supervised.scores import CellScores
from scfm.train.supervised.targets import Classes, Target, column_of
from scfm.train.supervised.tokens import encoded_cells, training_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack

    from numpy.typing import NDArray

    from scfm.model import FoundationModel
    from scfm.model.session import Session
    from scfm.run.device import Device
    from scfm.train.supervised.backbone import Backbone
    from scfm.train.supervised.setup import Data
    from scfm.train.supervised.split import Split

__all__ = ["CellModel"]

SCALED_BY = 256
"""Cells by which embeddings are standardised."""


class CellModel(SupervisedModel):
    """Base of the models that learn something of each cell from its counts."""

    backbone: Backbone
    balanced_classes: bool = False
    """Whether classes have the same influence on the loss, however many cells they have."""

    def _start(self, backbone: Backbone, head: str | nn.Module) -> None:
        """Keep the arguments, and learn from the data what is predicted."""
        if isinstance(head, nn.Module) and len(self.setup.columns) > 1:
            msg = "head= cannot be a module where several columns are learned; choose 'linear', 'bert' or 'attention'."
            raise ValueError(msg)
        self.backbone, self.head = backbone, head
        self._tuned: FoundationModel | None = None
        if self._data is not None:
            with backbone.session(self._data, self.setup) as session:  # says what is wrong with counts or genes
                obs = columns_of(session, self.setup.all_columns)
            self.targets = {name: self._target(column_of(obs, name), name) for name in self.setup.columns}
            self.task_weights = dict.fromkeys(self.targets, 1.0)

    def _target(self, column: pd.Series, name: str) -> Target:
        """What a column holds."""
        return Classes.of(column, name, self.setup.unlabeled_category)

    @property
    def foundation_model(self) -> FoundationModel:
        """The model with the trained weights, without the head, which every verb takes."""
        if self._tuned is None:
            name = f"{self.backbone.base.card.id}-{type(self).__name__}"
            self._tuned = self.backbone.tuned(self.module.network, name)  # type: ignore[arg-type]
        return self._tuned

    def new_module(self, tensors: Mapping[str, torch.Tensor] = MappingProxyType({})) -> SupervisedNetwork:
        """A network with pretrained weights and a new head."""
        self._tuned = None
        recipe = self.backbone.training_recipe()
        outputs = {name: target.n_outputs for name, target in self.targets.items()}
        head: nn.Module
        if isinstance(self.head, nn.Module):
            head = ModuleHead(deepcopy(self.head), recipe.n_features, outputs)
        else:
            head = TaskHead(self.head, recipe.n_features, outputs, self.backbone.dropout)  # type: ignore[arg-type]
        return SupervisedNetwork(recipe, self.backbone.run_options, self.backbone.network(recipe), head)

    def as_dict(self) -> dict[str, Any]:
        """The base, and the arguments of the model, as JSON holds them."""
        described = self.backbone.as_dict()
        head = self.head if isinstance(self.head, str) else "module"
        return {"base": described.pop("base"), "arguments": {"head": head, **described, **self._own_arguments()}}

    def _own_arguments(self) -> dict[str, Any]:
        """Arguments that other models do not have."""
        return {}

    def _prepare(
        self, stack: ExitStack, sizes: tuple[float, float], split: str | Split | None, seed: int, **how: Any
    ) -> Prepared:
        """Encode all cells, and split those that have a label."""
        self.backbone.warn_of_labels()
        session = stack.enter_context(self.backbone.session(self._training_data(), self.setup))
        obs = columns_of(session, (*self.setup.all_columns, *([split] if isinstance(split, str) else [])))
        self.cells_ = _hash(session.source.obs_names)
        cells = stack.enter_context(encoded_cells(session, how["cache"]))
        examples = Examples.of(obs, self.targets, self.setup, usable=cells.n_genes > 0)
        divided = examples.divided(sizes, split, seed)
        self.targets = examples.fitted(divided.train, balanced=self.balanced_classes)
        device = resolve_device("cpu" if how["accelerator"] == "cpu" else None)
        tokens = how["batch_tokens"] or training_tokens(device)
        inputs = TokenInputs(cells, CellTargets(examples.learned(self.targets)), tokens, padded=device.type != "cpu")
        self._standardise(inputs, divided.train, device, seed)
        return Prepared(inputs, inputs, divided, examples.draw_weights(divided.train) if how["balanced"] else None)

    def _standardise(self, inputs: TokenInputs, rows: NDArray[np.int64], device: torch.device, seed: int) -> None:
        """Let a head that reads embeddings know their scale, by some of the cells that are trained on."""
        if self.head != "linear" and not isinstance(self.head, nn.Module):
            return
        module: Any = self.module.to(device).eval()
        chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:SCALED_BY])
        with torch.inference_mode():
            pooled = [module.states(part.inputs).pooled for part in inputs.parts(chosen)]
        with torch.no_grad():
            module.head.fit(torch.cat(pooled))

    @typed
    def evaluate(self, *, baseline: bool = True) -> pd.DataFrame:
        """Judge the model on the test part of its data.

        Parameters
        ----------
        baseline
            Add logistic regression on 50 principal components, fitted to the same cells that the model was trained on. A model
            that is no better has learned nothing that counts here.

        Returns
        -------
        A row for the model, and one for the baseline, of each column: the figures of
        :func:`scfm.metrics.classification_report`, or ``r2``, ``pearson`` and ``mean_absolute_error`` of numbers.

        Raises
        ------
        RuntimeError
            If the model was not trained.
        ValueError
            If there is no test part, or the data are not those of the training.
        """
        self._check_if_trained(warn=False, message="The model was not trained; call train() before evaluate().")
        with self.backbone.session(self._training_data(), self.setup) as session:
            if _hash(session.source.obs_names) != self.cells_:
                msg = "These are other cells than those of the training, to which the test part belongs; predict them, and compare by scfm.metrics."
                raise ValueError(msg)
            obs = columns_of(session, self.setup.all_columns)
            examples = Examples.of(obs, self.targets, self.setup, usable=np.ones(len(obs), dtype=bool))
            found = judge(self, session, examples, baseline=baseline)
        self.report_ = found
        return found

    def predictions(
        self,
        data: Data | None = None,
        *,
        modality: str | None = None,
        threshold: float | None = None,
        device: Device | Sequence[Device] | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> dict[str, Prediction]:
        """What the model says of each target, for all cells; see :meth:`predict`."""
        self._check_if_trained(warn=False, message="The model was not trained; call train() before predict().")
        check_share("threshold", 0.0 if threshold is None else threshold)
        setup = self.setup if data is None else replace(self.setup, modality=modality)
        arguments = replace(self.backbone.arguments(setup), device=device, dtype=dtype or "float32")
        outputs = [target.n_outputs for target in self.targets.values()]
        model = self.foundation_model
        with model.session(self._training_data() if data is None else data, arguments) as session:
            head: Any = self.module.head
            task = CellScores(session.model, session.options, head, session.source.n_obs, sum(outputs))  # type: ignore[arg-type]
            session.run(task)
            names = session.source.obs_names
        scores = np.split(task.values(), np.cumsum(outputs)[:-1], axis=1)
        return {
            name: Prediction(target, names, probabilities(target, found, self.temperatures_.get(name, 1.0)), threshold)
            for (name, target), found in zip(self.targets.items(), scores, strict=True)
        }


def _hash(names: pd.Index) -> str:
    return sha256("\n".join(map(str, names)).encode()).hexdigest()


def columns_of(session: Session, names: Sequence[str]) -> pd.DataFrame:
    """Columns of ``obs`` of the cells of a session; a KeyError that names what is missing."""
    missing = [name for name in names if name not in session.source.obs_columns]
    if missing:
        msg = f"{missing[0]!r} is not a column of obs; found {session.source.obs_columns}."
        raise KeyError(msg)
    return pd.DataFrame({name: pd.Series(session.source.column(name)).reset_index(drop=True) for name in names})
