"""What all models have in common that learn labels or numbers: setup, training, and what is kept of it."""

from __future__ import annotations

import sys
from abc import abstractmethod
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from anndata import AnnData
from mudata import MuData
from scvi.data._constants import _SCVI_UUID_KEY
from scvi.model.base import BaseModelClass

from scfm._checks import check_least, check_share, typed
from scfm._settings import settings
from scfm.train.quiet import own_state
from scfm.train.supervised.figures import check_monitor
from scfm.train.supervised.plan import Optimisation, Schedule
from scfm.train.supervised.predictions import check_free, store
from scfm.train.supervised.runner import Fit, check_known, fit
from scfm.train.supervised.saved import load as load_model
from scfm.train.supervised.saved import save as save_model
from scfm.train.supervised.setup import Setup, file_key, manager_of, registry_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from torch import nn

    from scfm.model import FoundationModel
    from scfm.train.supervised.predictions import Prediction
    from scfm.train.supervised.prepared import Prepared
    from scfm.train.supervised.setup import Data
    from scfm.train.supervised.split import Split
    from scfm.train.supervised.targets import Target

__all__ = ["SupervisedModel"]


class SupervisedModel(BaseModelClass):
    """Base of the models: an scvi-tools model whose network is a foundation model with a head, or a head alone.

    A subclass makes :attr:`targets` and :attr:`module`, prepares the data of a run, and predicts.
    """

    # what setup_anndata was told of files, which have no AnnDataManager
    _of_files: ClassVar[dict[tuple[str, str], dict[str, Any]]] = {}

    module: nn.Module
    targets: dict[str, Target]
    """What is predicted, by name."""
    task_weights: dict[str, float]
    """Weight of each target in the loss."""
    calibrates: ClassVar[bool] = True
    """Whether probabilities are calibrated on what validated."""

    def __init__(self, data: Data | None = None, registry: dict[str, Any] | None = None) -> None:
        key = None if data is None else file_key(data)
        if key is not None:
            registry = self._of_files.get((type(self).__name__, key))
            if registry is None:
                msg = f"Please set up {data} first: {type(self).__name__}.setup_anndata(data, ...)."
                raise ValueError(msg)
        adata = None if data is None or key is not None else self._object(data)
        super().__init__(adata, registry=registry)
        self.setup = Setup.read(self.registry_)
        self._data: Data | None = data if adata is None else adata
        self.temperatures_: dict[str, float] = {}
        """Temperature of each target with classes, by which scores are divided before softmax."""
        self.fit_: Fit | None = None
        """What is known of the last training run."""
        self.report_: pd.DataFrame | None = None
        """Figures on the test part, by ``evaluate()``."""
        self.cells_: str | None = None
        """Hash of the names of the cells of the data, to which the positions of the split belong."""

    @classmethod
    def _set_up(cls, data: Data, setup: Setup) -> None:
        """Register a setup for an object or for files."""
        key = file_key(data)
        if key is not None:
            cls._of_files[cls.__name__, key] = registry_of(setup, cls.__name__)
            return
        if isinstance(data, MuData):
            if setup.modality not in data.mod:
                msg = f"A MuData needs modality=, one of {', '.join(map(repr, data.mod))}; got {setup.modality!r}."
                raise ValueError(msg)
            data, setup = data.mod[setup.modality], replace(setup, modality=None)
        assert isinstance(data, AnnData)
        cls.register_manager(manager_of(data, setup, cls.__name__))

    @classmethod
    def _object(cls, data: Any) -> AnnData:
        """The AnnData, of a MuData the modality that was set up."""
        if not isinstance(data, MuData):
            return data
        found = [one for one in data.mod.values() if one.uns.get(_SCVI_UUID_KEY) in cls._setup_adata_manager_store]
        if len(found) != 1:
            msg = f"Of this MuData, {len(found)} modalities are set up for {cls.__name__}; set up one: {cls.__name__}.setup_anndata(data, ..., modality=...)."
            raise ValueError(msg)
        return found[0]

    @abstractmethod
    def _prepare(
        self, stack: ExitStack, sizes: tuple[float, float], split: str | Split | None, seed: int, **how: Any
    ) -> Prepared:
        """Read, encode and split the data; files are closed with the stack."""

    @abstractmethod
    def new_module(self, tensors: Mapping[str, torch.Tensor] = MappingProxyType({})) -> nn.Module:
        """A network with its head, from pretrained weights; ``tensors`` are those that were stored with a head."""

    @classmethod
    def restored(cls, data: Data | None, setup: Setup, arguments: Mapping[str, Any]) -> Self:
        """A model with the arguments of another one, with data or without."""
        if data is None:
            return cls(registry=registry_of(setup, cls.__name__), **arguments)
        cls._set_up(data, setup)
        return cls(data, **arguments)

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """The arguments of the model, as JSON holds them."""

    @typed
    def train(
        self,
        max_epochs: int = 10,
        *,
        train_size: float = 0.9,
        validation_size: float | None = None,
        split: str | Split | None = None,
        batch_size: int = 16,
        batch_tokens: int | None = None,
        lr: float = 5e-5,
        head_lr: float | None = None,
        weight_decay: float = 0.001,
        schedule: Schedule = "linear",
        warmup: float = 0.1,
        clip: float = 1.0,
        balanced: bool = False,
        early_stopping: bool = False,
        early_stopping_patience: int = 3,
        monitor: str = "validation_loss",
        accelerator: str = "auto",
        devices: int | str | list[int] = 1,
        strategy: str = "auto",
        precision: str = "32-true",
        recompute: bool = False,
        checkpoint_dir: str | Path | None = None,
        token_cache: str | Path | None = None,
        seed: int = 0,
        **trainer_kwargs: Any,
    ) -> None:
        """Train, and keep the weights of the epoch that the validation cells like best.

        Parameters
        ----------
        max_epochs
            Passes over the cells that are trained on.
        train_size, validation_size
            Shares of the labelled cells (of the donors, which are kept whole, if ``donors_key`` was set up) that are
            trained on, and that choose the epoch and calibrate probabilities; the rest is a test part, which is not
            looked at. By default validation takes what training leaves. Each class has its share in each part.
        split
            Instead: column of ``obs`` that holds ``"train"``, ``"validation"``, ``"test"``, or nothing for a cell to leave out.
        batch_size
            Cells of a step of the optimiser.
        batch_tokens
            Tokens that go through the network at a time; a step with more is computed in parts, whose gradients are added.
            By default as for embedding on the device, 16,384 at most.
        lr, head_lr
            Largest learning rate, and another one for the head.
        weight_decay
            Of matrices (AdamW); biases and norms have none.
        schedule, warmup
            ``"linear"``, ``"cosine"`` or ``"constant"``, after a rise over ``warmup`` steps, or their share if below 1.
        clip
            Largest norm of a gradient, 0 for none.
        balanced
            Draw cells so that all classes come equally often.
        early_stopping, early_stopping_patience
            Stop when ``monitor`` has not become better for so many epochs.
        monitor
            Figure that chooses the epoch: ``"validation_loss"``, ``"validation_macro_f1"``, ``"validation_accuracy"``,
            ``"validation_r2"``, as :attr:`history` has them.
        accelerator, devices, strategy, precision
            As of :class:`lightning.Trainer`; ``"bf16-mixed"`` computes products of matrices in bfloat16.
        recompute
            Keep no states of layers for the backward pass, but compute them again: less memory, a third more time.
        checkpoint_dir
            Folder for a checkpoint of each epoch. The same call goes on from the last one, to the same weights.
        token_cache
            Folder for the file of tokens of many cells; that for temporary files by default.
        seed
            Decides split, order, dropout and the first weights of the head.
        **trainer_kwargs
            Of :class:`lightning.Trainer`, as ``logger=``.

        Raises
        ------
        ValueError
            If an argument is out of range, a part is empty, or ``checkpoint_dir`` belongs to another run.
        KeyError
            If there is no such column.
        FloatingPointError
            If training diverged.

        Notes
        -----
        On a CPU with one process the result depends on the arguments alone, bit by bit, also after an interruption.
        """
        check_known(trainer_kwargs, type(self).train)
        check_least("max_epochs", max_epochs)
        check_least("batch_size", batch_size)
        check_least("batch_tokens", 1 if batch_tokens is None else batch_tokens)
        check_monitor(monitor, self.targets)
        optimisation = Optimisation(
            lr=lr, head_lr=head_lr, weight_decay=weight_decay, schedule=schedule, warmup=warmup, clip=clip
        )
        sizes = (train_size, 1 - train_size if validation_size is None else validation_size)
        with own_state(), ExitStack() as stack:
            torch.manual_seed(seed)
            self.is_trained_ = False  # from here on, also if something is wrong with the data
            self.module = self.new_module()
            prepared = self._prepare(
                stack,
                sizes,
                split,
                seed,
                batch_tokens=batch_tokens,
                accelerator=accelerator,
                balanced=balanced,
                cache=None if token_cache is None else Path(token_cache).expanduser(),
            )
            self._check_validation(prepared.split, sizes, monitor)
            self.report_ = None
            self.fit_ = fit(
                self,
                prepared,
                optimisation,
                max_epochs=max_epochs,
                batch_size=batch_size,
                patience=early_stopping_patience if early_stopping else None,
                monitor=monitor,
                recompute=recompute,
                checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir).expanduser(),
                seed=seed,
                accelerator=accelerator,
                devices=devices,
                strategy=strategy,
                precision=precision,
                enable_progress_bar=sys.stderr.isatty() if settings.progress is None else settings.progress,
                **trainer_kwargs,
            )

    def _training_data(self) -> Data:
        """The data that the model was made with."""
        if self._data is None:
            msg = "The model was loaded without data: name some, as in load(dir_path, adata)."
            raise ValueError(msg)
        return self._data

    def _check_validation(self, split: Split, sizes: tuple[float, float], monitor: str) -> None:
        """A ValueError if there are no cells to validate with, and some are needed."""
        if not len(split.validation) and (monitor != "validation_loss" or sizes[1] > 1e-9):
            msg = (
                f"There are no cells to validate with: {len(split.train)} of them are trained on, with train_size={sizes[0]:g} and "
                f"validation_size={sizes[1]:g}. Lower train_size, or set validation_size=0 and leave monitor= out."
            )
            raise ValueError(msg)

    def _stored(self, data: Data | None, predictions: Mapping[str, Prediction], key_added: str) -> None:
        """Put predictions into the AnnData."""
        adata = self._data if data is None else data
        if not isinstance(adata, AnnData):
            msg = "key_added= stores predictions in an AnnData; of files, scfm.tl.predict(data, model, out=...) writes a copy."
            raise TypeError(msg)
        for name, prediction in predictions.items():
            key = key_added if len(predictions) == 1 else f"{key_added}_{name}"
            check_free(adata, key, "predict")
            store(adata, prediction.fields(key, self.params()))

    def params(self) -> dict[str, Any]:
        """What belongs to the predictions, in types that every AnnData file format can store."""
        base = self.as_dict().get("base") or {}
        told = {name: value for name, value in base.items() if value is not None}
        return {"function": "scfm.tl.predict", "class": type(self).__name__, **told}

    def threshold_for(self, accuracy: float) -> float:
        """Score from which labels of the validation cells are right as often as asked.

        Parameters
        ----------
        accuracy
            Share of the labels that are to be right, among those that are given.

        Returns
        -------
        The lowest such score, for ``predict(threshold=)``; 0 if all labels are good enough.

        Raises
        ------
        ValueError
            If there were no validation cells, or no score is good enough.
        """
        check_share("accuracy", accuracy)
        if self.fit_ is None or self.fit_.validated is None:
            msg = "There is no score to choose: the model was not trained with validation cells, or has several targets or numbers."
            raise ValueError(msg)
        scores, right = (np.array(one) for one in self.fit_.validated)
        order = np.argsort(-scores, kind="stable")
        scores, shares = scores[order], np.cumsum(right[order]) / np.arange(1, len(order) + 1)
        last = np.append(scores[1:] < scores[:-1], True)  # cells of one score are kept or left together
        good = np.flatnonzero(last & (shares >= accuracy))
        if not len(good):
            msg = f"No score is right for {accuracy:.0%} of the validation cells; the best share is {shares[last].max():.0%}."
            raise ValueError(msg)
        return 0.0 if good[-1] == len(order) - 1 else float(scores[good[-1]])

    @typed
    def save(self, dir_path: str | Path, *, overwrite: bool = False, whole: bool = True) -> None:
        """Write the model into a folder of safetensors and JSON.

        Parameters
        ----------
        dir_path
            Folder to write; it appears when it is complete.
        overwrite
            Replace the folder if it holds a model.
        whole
            Write all weights, so that every verb takes the folder, as in ``scfm.tl.embed(adata, dir_path)``. ``False`` writes
            only what was trained of a model with frozen layers or adapters, a few MB, which :meth:`load` puts on the base.

        Raises
        ------
        RuntimeError
            If the model was not trained.
        FileExistsError
            If the folder exists and is not to be overwritten, or holds something else.
        """
        self._check_if_trained(warn=False, message="The model was not trained; call train() before save().")
        save_model(self, Path(dir_path).expanduser(), overwrite=overwrite, whole=whole)

    @classmethod
    @typed
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | MuData | str | Path | None = None,
        *,
        base: str | Path | FoundationModel | None = None,
        head: nn.Module | None = None,
    ) -> Self:
        """Load a model that :meth:`save` wrote, or the head of a published fine-tuned model.

        Parameters
        ----------
        dir_path
            Folder of :meth:`save`, or one that :func:`scfm.model.convert` made of a fine-tuned checkpoint.
        adata
            Data to go on with; by default none, and predictions take their own.
        base
            The model below, where the folder has only what was trained and the base is not found by the name that it had.
        head
            The module that was given as ``head`` to the model, if one was.

        Raises
        ------
        FileNotFoundError
            If there is no such folder or base.
        ValueError
            If the folder is of another class, a hash is wrong, or the base has other weights.
        """
        return load_model(cls, Path(dir_path).expanduser(), adata, base=base, head=head)

    def __repr__(self) -> str:
        trained = "trained" if self.is_trained_ else "not trained"
        return f"{type(self).__name__}({', '.join(self.targets)}; {trained})"
