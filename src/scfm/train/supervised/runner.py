"""One training run: scvi-tools' trainer over our steps, and what is kept of it."""

from __future__ import annotations

import gc
import json
import warnings
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import partial
from hashlib import sha256
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from scvi.train import TrainRunner
from scvi.train._logger import SimpleLogger
from torch.utils.checkpoint import checkpoint

from scfm._paths import atomic, read_json
from scfm._text import some
from scfm.metrics import calibrated, fit_temperature
from scfm.train.checkpoints import WholeCheckpoints, epoch_keeper, newest
from scfm.train.quiet import quiet
from scfm.train.supervised.data import SupervisedData
from scfm.train.supervised.plan import BestWeights, Optimisation, SupervisedPlan
from scfm.train.supervised.targets import Classes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from scfm.train.supervised.inputs import Inputs
    from scfm.train.supervised.prepared import Prepared, Trainable

    _Scores = tuple[NDArray[Any], NDArray[Any]]

__all__ = ["Fit", "check_known", "fit"]


class _Runner(TrainRunner):
    """Keeps history and split as scvi-tools does; its own trainer would write checkpoints as pickles."""

    _trainer_cls = Trainer


RUN_FILE = "run.json"


def check_known(given: Iterable[str], train: Callable[..., None]) -> None:
    """A TypeError for an argument that neither ``train()`` nor :class:`lightning.Trainer` has."""
    known = {*signature(train).parameters, *signature(Trainer).parameters}
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}=?" if close else "."
            msg = f"{name}= is no argument of train(), nor of lightning.Trainer{hint}"
            raise TypeError(msg)


@dataclass(frozen=True)
class Fit:
    """What is known of a training run."""

    epoch: int
    """Epoch whose weights were kept; the last one without validation cells."""
    best: float | None
    """Its figure."""
    monitor: str
    arguments: dict[str, Any]
    """Of :meth:`train`, as JSON holds them."""
    n_cells: tuple[int, int, int]
    """Cells (or genes) that were trained on, validated with, and left."""
    validated: tuple[list[float], list[bool]] | None = None
    """Score of each validation cell, and whether its label is right; for one target with classes."""


def fit(
    model: Trainable,
    prepared: Prepared,
    optimisation: Optimisation,
    *,
    max_epochs: int,
    batch_size: int,
    patience: int | None,
    monitor: str,
    recompute: bool,
    checkpoint_dir: Path | None,
    seed: int,
    **machine: Any,
) -> Fit:
    """Train the module of a model, keep its best weights, and calibrate its probabilities."""
    split = prepared.split
    data = SupervisedData(
        prepared.training,
        prepared.validation,
        split,
        batch_size=batch_size,
        weights=prepared.weights,
        seed=seed,
    )
    arguments = {
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "balanced": prepared.weights is not None,
        "monitor": monitor,
        "patience": patience,
        "precision": machine["precision"],
        "seed": seed,
        **asdict(optimisation),
    }
    plan = SupervisedPlan(
        model.module, model.targets, model.task_weights, optimisation, max_epochs * data.n_steps, seed
    )
    best = BestWeights(monitor)
    callbacks: list[Any] = [best]
    if patience is not None:
        mode = "min" if monitor.endswith("loss") else "max"
        callbacks.append(EarlyStopping(monitor, patience=patience, mode=mode))
    if checkpoint_dir is not None:
        described = {"setup": asdict(model.setup), **model.as_dict(), "task_weights": model.task_weights, **arguments}
        _check_same_run(checkpoint_dir, {**described, "cells": _digest(prepared)})
        callbacks.append(epoch_keeper(checkpoint_dir))
    with quiet(), _recomputing(model.module, recompute=recompute):
        model.module.train()
        runner = _Runner(
            model,
            plan,
            data,
            max_epochs,
            logger=machine.pop("logger", SimpleLogger()),
            callbacks=[*callbacks, *machine.pop("callbacks", [])],
            plugins=[WholeCheckpoints()],
            enable_checkpointing=checkpoint_dir is not None,
            ckpt_path=None if checkpoint_dir is None else newest(checkpoint_dir),
            limit_val_batches=1.0 if data.n_val else 0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            **machine,
        )
        runner()
        epoch = runner.trainer.current_epoch - 1
        # a trainer holds the moments of the optimiser and the cells, and is in a circle with the loop
        runner.trainer = model.trainer = None
        del runner, plan
        gc.collect()
        _check_finite(model, judged=best.best is not None or not data.n_val)
        judged = _validated(model, prepared.validation, split.validation) if model.calibrates else {}
        model.temperatures_ = {name: _temperature(*found) for name, found in judged.items()}
    model.module.cpu()
    epoch = best.epoch if best.best is not None else epoch
    n_cells = (len(split.train), len(split.validation), len(split.test))
    return Fit(epoch, best.best, monitor, arguments, n_cells, _right(model, judged))


def _check_finite(model: Trainable, *, judged: bool) -> None:
    """A FloatingPointError if training diverged; the model is not trained then."""
    if not judged or not all(one.isfinite().all() for one in model.module.parameters()):
        model.is_trained_ = False
        msg = "Training diverged: weights, or the figures of all epochs, are not finite. Lower lr=, or clip gradients (clip=1)."
        raise FloatingPointError(msg)


def _validated(model: Trainable, inputs: Inputs, rows: NDArray[np.int64]) -> dict[str, _Scores]:
    """Scores of the validation cells and their codes, for each target with classes."""
    scores: dict[str, list[NDArray[Any]]] = {name: [] for name in model.targets}
    codes: dict[str, list[NDArray[Any]]] = {name: [] for name in model.targets}
    with torch.inference_mode():
        for part_rows in np.array_split(rows, -(-len(rows) // 64)) if len(rows) else []:
            for part in inputs.parts(part_rows):
                for name, found in model.module(part.inputs).items():
                    known = model.targets[name].known(part.targets[name])
                    scores[name].append(found.float().cpu().numpy()[known])
                    codes[name].append(part.targets[name][known])
    return {
        name: (np.concatenate(scores[name]), np.concatenate(codes[name]))
        for name, target in model.targets.items()
        if isinstance(target, Classes) and any(len(part) for part in codes[name])
    }


def _temperature(scores: NDArray[Any], codes: NDArray[Any]) -> float:
    with warnings.catch_warnings():  # where no temperature is best, 1 is right
        warnings.simplefilter("ignore", UserWarning)
        return fit_temperature(scores, codes)


def _right(model: Trainable, judged: dict[str, _Scores]) -> tuple[list[float], list[bool]] | None:
    """Score of each validation cell, and whether its label is right, of the only target."""
    if len(model.targets) > 1 or not judged:
        return None
    ((name, (scores, codes)),) = judged.items()
    shares = calibrated(scores, model.temperatures_[name])
    return shares.max(axis=1).tolist(), (shares.argmax(axis=1) == codes).tolist()


class _recomputing:
    """Lets layers compute their states again in the backward pass, as long as training runs."""

    def __init__(self, module: nn.Module, *, recompute: bool) -> None:
        network = getattr(module, "network", None)
        self._layers = list(cast("list[nn.Module]", network.layers)) if recompute and network is not None else []

    def __enter__(self) -> None:
        for layer in self._layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def __exit__(self, *error: object) -> None:
        for layer in self._layers:
            del layer.__dict__["forward"]


def _digest(prepared: Prepared) -> str:
    """Hash of the split and of all that is read and learned of the cells."""
    digest = sha256()
    split = prepared.split
    for part in (split.train, split.validation, split.test, *prepared.training.arrays(), *prepared.validation.arrays()):
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _check_same_run(folder: Path, run: dict[str, Any]) -> None:
    """Note what the run is, or compare with what was noted; a ValueError if it is another one."""
    wanted = json.loads(json.dumps(run))
    path = folder / RUN_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(path) as new:
            new.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        return
    stored = read_json(path)
    changed = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
    if changed:
        msg = (
            f"checkpoint_dir={folder} belongs to another run, which differs in {some(changed)}. Call it as before to go on, or "
            "choose another folder."
        )
        raise ValueError(msg)
