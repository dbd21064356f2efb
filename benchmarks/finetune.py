"""Tokens per second of fine-tuning, beside the Trainer of transformers: classes of cells, Geneformer's V1-10M, the CPU in float32.

Both train ``BertForSequenceClassification`` of the same sizes (6 layers of 256, 25,426 tokens, the same dropout) on the same
cells, as many a step, each in a process of its own and in turns. The peer pads a batch to its longest cell, with cells in random
order, or grouped by length (``group_by_length``). Grouping needs many cells to be good, so the steps of a turn are spread evenly
over an epoch that the Trainer's sampler has grouped, and all three train once on the cells of these steps.

Cells are real ones, of ``scfm.datasets.pbmc68k`` or of a file, with made-up labels; genes are renamed to those of the model.
Tokens are those of cells, without padding. Timed is the training loop, without imports, encoding and the first run of a process,
which compiles and allocates. Where others use the machine, too, the CPU seconds of all threads tell more than the clock, best
with one thread. Ratios are medians over turns. Memory is the highest peak of the process, and how far it is above what is in use
before. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from . import rss
from .pretrain import N_GENES, SIZES, gene_ids, now, peer_config, peer_tokenizer, tokens_of, write_model
from .synthetic_files import positive
from .worker import Worker, serve

if TYPE_CHECKING:
    import argparse

    from anndata import AnnData

N_CLASSES = 8
SIDES = {"scfm": ("ours", ""), "transformers": ("theirs", "random"), "transformers, grouped": ("theirs", "sequential")}
COLUMNS = ("tokens/s", "tokens per CPU second", "peak memory, MB", "above what is in use before, MB")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="file of counts; by default the cells of scfm.datasets.pbmc68k")
    parser.add_argument("--batch-cells", type=positive, default=16)
    parser.add_argument("--steps", type=positive, default=8, help="of a turn")
    parser.add_argument("--turns", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--dropout", type=float, default=0.02)


def run(args: argparse.Namespace) -> None:
    rss.check()
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    how = {"batch_cells": args.batch_cells, "threads": args.threads, "dropout": args.dropout}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        cells, tokens = prepare(folder, args)
        command = [sys.executable, "-m", "benchmarks.finetune"]
        workers = {side: stack.enter_context(Worker(command, folder)) for side in SIDES}
        for turn in range(args.turns + 1):
            # the first turn is one step, which warms up
            chosen = steps_of([len(one) for one in tokens], args, turn)[: None if turn else args.batch_cells]
            cells[chosen].copy().write_h5ad(folder / "turn.h5ad")
            (folder / "turn.json").write_text(json.dumps([tokens[cell] for cell in chosen]))
            for side, (do, order) in SIDES.items():
                reply = workers[side].ask(do, folder=folder, seed=turn, order=order, **how)
                if turn:
                    found[side].append(reply | {"tokens": sum(len(tokens[cell]) for cell in chosen)})
    n_tokens = median(reply["tokens"] for reply in found["scfm"])
    print(
        f"{args.turns} turns of {args.steps} steps of {args.batch_cells} cells, {n_tokens:,.0f} tokens a turn;", end=" "
    )
    print(f"{args.threads} threads, dropout {args.dropout}\n")
    report(found)


def report(found: dict[str, list[dict[str, float]]]) -> None:
    print(f"| | {' | '.join(COLUMNS)} |\n{'|---' * 5}|")
    for side, replies in found.items():
        speeds = [median(one["tokens"] / one[key] for one in replies) for key in ("seconds", "busy")]
        memory = [max(one[key] for one in replies) / 1e6 for key in ("peak", "above")]
        print(f"| {side} | {' | '.join(f'{figure:,.0f}' for figure in (*speeds, *memory))} |")
    ours, *peers = found
    for peer in peers:
        pairs = list(zip(found[ours], found[peer], strict=True))
        cells = []
        for key in ("seconds", "busy"):
            ratios = [theirs[key] / own[key] for own, theirs in pairs]
            cells.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        for key in ("peak", "above"):
            cells.append(f"{max(own[key] for own, _ in pairs) / max(theirs[key] for _, theirs in pairs):.2f}")
        print(f"| {ours} / {peer} | {' | '.join(cells)} |")


def prepare(folder: Path, args: argparse.Namespace) -> tuple[AnnData, list[list[int]]]:
    """The cells with genes of the model and labels, their tokens, and the model in the folder."""
    import anndata
    import pandas as pd
    from scipy import sparse

    import scfm

    scfm.settings.progress = False
    given = scfm.datasets.pbmc68k() if args.data is None else anndata.read_h5ad(args.data)
    if given.n_vars > N_GENES or given.n_obs < args.batch_cells * args.steps:
        msg = f"--data: {given.n_obs} cells of {given.n_vars} genes; expected at least {args.batch_cells * args.steps} of at most {N_GENES}."
        raise SystemExit(msg)
    labels = pd.Categorical([f"class-{row % N_CLASSES}" for row in range(given.n_obs)])
    obs = pd.DataFrame({"label": labels}, index=given.obs_names)
    var = pd.DataFrame(index=pd.Index(gene_ids()[: given.n_vars]))
    cells = anndata.AnnData(sparse.csr_matrix(given.X), obs=obs, var=var)
    write_model(folder / "genes", SIZES)
    cells.write_h5ad(folder / "cells.h5ad")
    return cells, tokens_of(folder / "genes", folder / "cells.h5ad")


def steps_of(lengths: list[int], args: argparse.Namespace, turn: int) -> list[int]:
    """Cells of some steps, evenly spread over those of an epoch that the Trainer's sampler has grouped by length."""
    import numpy as np
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    order = get_length_grouped_indices(lengths, args.batch_cells, generator=torch.Generator().manual_seed(turn))
    n_steps = len(lengths) // args.batch_cells
    steps = np.array(order[: n_steps * args.batch_cells]).reshape(n_steps, args.batch_cells)
    places = (np.arange(args.steps) + np.random.default_rng(turn).random()) * n_steps / args.steps
    return steps[places.astype(int)].ravel().tolist()


class Side:
    """What a process does when it is asked."""

    def ours(
        self, folder: str, seed: int, order: str, batch_cells: int, threads: int, dropout: float
    ) -> dict[str, float]:
        import torch
        from lightning.pytorch.callbacks import Callback

        import scfm

        torch.set_num_threads(threads)
        scfm.settings.progress, scfm.settings.threads = False, threads
        times: list[Any] = []

        class Clock(Callback):
            def on_train_start(self, *_: Any) -> None:
                times.append(now())

            def on_train_end(self, *_: Any) -> None:
                times.append(now())

        data, base = Path(folder, "turn.h5ad"), Path(folder, "genes")
        before = started()
        scfm.train.CellClassifier.setup_anndata(data, labels_key="label")
        model = scfm.train.CellClassifier(data, model=base, head="bert", dropout=dropout)
        whole: dict[str, Any] = {
            "train_size": 1.0,
            "validation_size": 0.0,
            "batch_size": batch_cells,
            "accelerator": "cpu",
        }
        model.train(1, seed=seed, callbacks=[Clock()], **whole)
        return measured(times, before)

    def theirs(
        self, folder: str, seed: int, order: str, batch_cells: int, threads: int, dropout: float
    ) -> dict[str, float]:
        import torch
        from transformers import (
            BertForSequenceClassification,
            DataCollatorWithPadding,
            Trainer,
            TrainerCallback,
            TrainingArguments,
        )

        torch.set_num_threads(threads)
        times: list[Any] = []

        class Clock(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                times.append(now())

            def on_train_end(self, *_: Any, **__: Any) -> None:
                times.append(now())

        before = started()
        tokens = json.loads(Path(folder, "turn.json").read_text())
        cells = [{"input_ids": one, "labels": row % N_CLASSES} for row, one in enumerate(tokens)]
        arguments = TrainingArguments(
            output_dir=str(Path(folder, "peer")),
            num_train_epochs=1,
            per_device_train_batch_size=batch_cells,
            learning_rate=5e-5,
            weight_decay=0.001,
            train_sampling_strategy=order,
            seed=seed,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        network = BertForSequenceClassification(peer_config(dropout, num_labels=N_CLASSES))
        collate = DataCollatorWithPadding(peer_tokenizer())
        Trainer(network, arguments, collate, cells, callbacks=[Clock()]).train()
        return measured(times, before)


def started() -> int:
    """Bytes in use now, from which the peak is counted, without what the run before has left."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    rss.reset_peak()
    return rss.resident()


def measured(times: list[Any], before: int) -> dict[str, float]:
    """Seconds by the clock and of all threads, and memory."""
    (seconds, busy), peak = times[1] - times[0], rss.peak()
    return {"seconds": float(seconds), "busy": float(busy), "peak": peak, "above": peak - before}


if __name__ == "__main__":
    serve(Side())
