"""A run that is ready: the model, the corpus, its steps, and the trainer that carries them out."""

from __future__ import annotations

import logging
import resource
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from lightning import Trainer

from scfm._lock import hold
from scfm._paths import atomic
from scfm._settings import settings
from scfm.genes import GeneMap
from scfm.model.arguments import Arguments
from scfm.train.cells import Corpus, Draws, Stream
from scfm.train.checkpoints import WholeCheckpoints, curves, keepers, loggers, newest
from scfm.train.data import CellData
from scfm.train.masking import Masking
from scfm.train.module import PretrainingModule
from scfm.train.objectives import OBJECTIVES
from scfm.train.rank_start import projecting_tensors
from scfm.train.result import write_result
from scfm.train.start import checked_vectors, read_vectors, starting_model
from scfm.train.steps import Steps
from scfm.train.views import Views
from scfm.weights.tensors import open_tensors, save_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scfm.model import FoundationModel
    from scfm.model.recipe import RunOptions
    from scfm.train.config import Pretraining
    from scfm.train.objective import Objective
    from scfm.train.start import Vectors

__all__ = ["Plan"]

logger = logging.getLogger("scfm")

HELD_OUT = 5
"""Number that tells this random stream of a seed apart."""
TRIED = 3
"""Steps that an estimate computes, of which the first one warms up."""


@dataclass(frozen=True)
class Plan:
    """What :func:`scfm.train.pretrain` carries out."""

    run: Pretraining
    out: Path
    work: Path
    model: FoundationModel
    corpus: Corpus
    module: PretrainingModule
    data: CellData
    steps: Steps

    @classmethod
    def of(cls, run: Pretraining, out: Path, work: Path, vectors: pd.DataFrame | None = None) -> Self:
        """Make model, corpus and steps; everything that can be wrong is said here."""
        objectives, weights = _objectives(run)
        n_views = max(objective.n_views for objective in objectives.values())
        read = _vectors(run, vectors)
        with hold(work / "start.lock"):
            model = starting_model(run, work / "start", run.name or out.name, read)
        arguments = Arguments(layer=run.layer, gene_key=run.gene_key, pooling=run.pooling, max_tokens=run.max_tokens)
        options = arguments.resolved(model)
        match = partial(model.match, gene_key=run.gene_key, options=options)
        corpus = Corpus(run.files, model.vocabulary, match, partial(arguments.open, model))
        labels, cell_types = (None, []) if run.labels_key is None else corpus.labels(run.labels_key)
        streams, held_out = _split(run, corpus)
        masks = any(objective.masks for objective in objectives.values())
        steps = Steps(
            corpus,
            Draws(streams, run.sampling.power, run.sampling.cells_per_file, run.seed),
            model.vocabulary,
            _encoder(model, corpus, options),
            n_views,
            run.views or (Views() if any(one.changes_views for one in objectives.values()) else None),
            Masking(model.vocabulary, **run.masking) if masks else None,
            run.sampling.batch_cells,
            run.sampling.batch_tokens,
            run.unit,
            labels,
            run.seed,
        )
        if run.machine.threads is not None:
            torch.set_num_threads(run.machine.threads)
        if run.start == "projection":
            model = _projected(model, steps, options, run, work / "start.safetensors")
        module = PretrainingModule(model, options, objectives, weights, run, cell_types, read)
        type(model)(
            model.card, model.vocabulary, module.published_tensors()
        ).validate_weights()  # as what is written will be
        return cls(run, out, work, model, corpus, module, CellData(steps, run.steps, held_out), steps)

    @property
    def facts(self) -> list[list[Any]]:
        """Name and size of the files, by which a run is known again."""
        sizes = self.corpus.sizes
        return [[name, size] for name, size in zip(self.corpus.names, sizes, strict=True)]

    def carry_out(self) -> Path:
        """Train, from the newest checkpoint on, and write the model."""
        checkpoints, logs, machine = self.work / "checkpoints", self.work / "logs", self.run.machine
        last = newest(checkpoints)
        if last is not None:
            logger.info("going on from %s", last)
        judged = self.data.judged
        strategy = (
            "ddp_find_unused_parameters_true"
            if machine.devices > 1 and machine.strategy == "auto"
            else machine.strategy
        )
        trainer = Trainer(
            accelerator=machine.accelerator,
            devices=machine.devices,
            strategy=strategy,
            precision=machine.precision,
            max_steps=self.run.steps,
            max_epochs=-1,
            logger=loggers(logs, last),
            callbacks=keepers(checkpoints, min(self.run.checkpoint_every, self.run.steps), judged),
            plugins=[WholeCheckpoints()],
            limit_val_batches=1.0 if judged else 0,
            val_check_interval=min(self.run.validation.every, self.run.steps) if judged else None,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=max(1, min(10, self.run.steps // 20)),
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=settings.progress if settings.progress is not None else sys.stderr.isatty(),
            default_root_dir=self.work,
        )
        trainer.fit(self.module, datamodule=self.data, ckpt_path=last, weights_only=True)
        if trainer.is_global_zero:
            tensors = self.module.published_tensors()
            write_result(self.out, self.model, tensors, self.run, self.corpus, curves(logs))
        trainer.strategy.barrier()
        return self.out

    def estimate(self) -> dict[str, Any]:
        """Compute a few steps, and say what the run takes."""
        times, tokens = [], []
        for step in range(TRIED):
            began = time.perf_counter()
            batches = self.steps.batches(step, 0, self.run.machine.devices)
            for batch in batches:
                terms = self.module(batch)
                if terms:  # a small batch may have nothing to predict
                    sum(term.total for term in terms.values()).backward()
            times.append(time.perf_counter() - began)
            tokens.append(sum(len(batch.batch.tokens) for batch in batches) * self.run.machine.devices)
        n_parameters = sum(one.numel() for one in self.module.parameters() if one.requires_grad)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        per_step = float(np.mean(tokens))
        return {
            "files": len(self.corpus.sizes),
            "cells": sum(self.corpus.sizes),
            "genes": len(self.model.vocabulary.genes),
            "parameters": n_parameters,
            "steps": self.run.steps,
            "tokens": round(per_step * self.run.steps),
            "tokens_per_step": round(per_step),
            "seconds": float(np.mean(times[1:]) * self.run.steps),
            "bytes": peak + 8 * n_parameters,  # the moments of the optimiser
        }


def _vectors(run: Pretraining, given: pd.DataFrame | None) -> Vectors | None:
    if given is not None:
        return checked_vectors(given.index.to_numpy().astype(str), given.to_numpy(np.float32), "gene_vectors")
    return None if run.gene_vectors is None else read_vectors(Path(run.gene_vectors).expanduser())


def _objectives(run: Pretraining) -> tuple[dict[str, Objective], dict[str, float]]:
    """Losses and their weights, by name."""
    made, weights = {}, {}
    for name, given in run.objectives.items():
        if name not in OBJECTIVES:
            msg = f"objectives.{name} is not known; there are {', '.join(OBJECTIVES)}."
            raise ValueError(msg)
        arguments = dict(given or {})
        weight = arguments.pop("weight", 1.0)
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not weight > 0:
            msg = f"objectives.{name}.weight must be a number above 0, got {weight!r}."
            raise ValueError(msg)
        try:
            made[name] = OBJECTIVES[name](**arguments)
        except TypeError as error:
            msg = f"objectives.{name}: {error}."
            raise ValueError(msg) from error
        weights[name] = float(weight)
    return made, weights


def _projected(
    model: FoundationModel, steps: Steps, options: RunOptions, run: Pretraining, path: Path
) -> FoundationModel:
    """The model with weights that embed cells by a projection, which are made once."""
    with hold(path.with_name("start.lock")):
        if not path.exists():
            tensors = projecting_tensors(model, steps, options, run.seed)
            with atomic(path) as new:
                save_tensors(tensors, new)
    return type(model)(model.card, model.vocabulary, open_tensors(path))


def _split(run: Pretraining, corpus: Corpus) -> tuple[list[Stream], dict[str, dict[int, NDArray[np.int64]]]]:
    """Cells that are trained on, and cells that judge the model: of the same files, and of others."""
    others = sorted(corpus.number(name) for name in run.validation.files)
    trained = [number for number in range(len(corpus.sizes)) if number not in others]
    if not trained:
        msg = "validation.files holds out all files; leave some to train on."
        raise ValueError(msg)
    n = run.validation.cells

    def drawn(number: int, size: int) -> NDArray[np.int64]:
        rng = np.random.default_rng((run.seed, HELD_OUT, number))
        return np.sort(rng.choice(corpus.sizes[number], size, replace=False))

    weights = np.array([corpus.sizes[number] for number in trained], float) ** run.sampling.power
    shares = (n * weights / weights.sum()).astype(int).tolist()
    inside = {
        number: drawn(number, min(share, corpus.sizes[number] // 10))
        for number, share in zip(trained, shares, strict=True)
    }
    outside = {number: drawn(number, min(n // len(others), corpus.sizes[number])) for number in others}
    sets = {"validation": inside, "other_files": outside}
    held_out = {name: {at: rows for at, rows in cells.items() if len(rows)} for name, cells in sets.items()}
    streams = []
    for number, held in _held_cells(run, corpus, trained).items():
        rows = np.setdiff1d(np.arange(corpus.sizes[number]), inside[number])
        streams.append(Stream(corpus, number, rows, held, run.seed))
    return streams, {name: cells for name, cells in held_out.items() if cells}


def _held_cells(run: Pretraining, corpus: Corpus, numbers: Sequence[int]) -> dict[int, int]:
    """Cells of each file that may be in memory: small files as a whole, of the others as many bytes each."""
    left = run.sampling.memory_gb * 1e9
    per_cell = {number: corpus.cell_bytes(number) for number in numbers}
    by_size = sorted(numbers, key=lambda number: per_cell[number] * corpus.sizes[number])
    held = {}
    for at, number in enumerate(by_size):
        held[number] = min(corpus.sizes[number], int(left / (len(by_size) - at) / per_cell[number]))
        left -= held[number] * per_cell[number]
    return {number: held[number] for number in numbers}


def _encoder(model: FoundationModel, corpus: Corpus, options: RunOptions) -> Any:
    """The step from counts by the position of genes in the vocabulary to tokens."""
    source: Any = _NoAnnotation()
    return model.encoder(source, GeneMap(model.vocabulary.tokens, corpus.reports[0], sums=False), options)


class _NoAnnotation:
    """Stands for a source without annotation of its cells."""

    obs_columns: tuple[str, ...] = ()
    n_obs = 2**20
