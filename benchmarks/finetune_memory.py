"""Memory of fine-tuning against the number of cells of a file: a head on a frozen layer, one epoch. Linux only.

Each run is a process of its own, which first trains on a few cells in the same way: imports, the model and compiled code are the
baseline. Reported is how far memory rises above it, all of it and without pages of files: tokens above the limit are in a file
that is mapped into memory, whose pages the system drops when others need the memory. The limit of 256 MiB is lowered to 1 MiB, so
that the tokens of all runs are in a file, and what remains is what grows with the cells. ``--in-memory 256`` sets it back.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from threading import Event, Thread
from time import process_time
from typing import TYPE_CHECKING

from . import rss, synthetic_files
from .pretrain import N_GENES, gene_ids, write_model
from .synthetic_files import counts_of, positive
from .worker import Worker, serve

if TYPE_CHECKING:
    import argparse

SIZES = {"hidden_size": 32, "n_layers": 1, "n_heads": 1, "intermediate_size": 32, "max_positions": 2048}
N_CLASSES = 8
FEW = 1024
SECONDS = 0.02
"""Between two looks at what is in use."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", type=positive, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--batch-cells", type=positive, default=512)
    parser.add_argument("--in-memory", type=positive, default=1, help="MiB of tokens above which they go to a file")
    parser.add_argument("--threads", type=positive, default=1)
    synthetic_files.add_sizes(parser, mean=100, most=150)
    parser.set_defaults(genes=N_GENES)


def run(args: argparse.Namespace) -> None:
    rss.check()
    print(f"tokens above {args.in_memory} MiB in a file, {args.batch_cells} cells a step\n")
    print("| cells | tokens, MB | baseline, MB | peak above baseline, MB | without pages of files, MB | CPU s |")
    print("|---" * 6 + "|")
    how = {"batch_cells": args.batch_cells, "in_memory": args.in_memory * 2**20, "threads": args.threads}
    for n_cells in sorted(args.cells):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_model(folder / "genes", SIZES)
            few = write_cells(folder / "few.h5ad", FEW, args)
            data = write_cells(folder / "cells.h5ad", n_cells, args)
            with Worker([sys.executable, "-m", "benchmarks.finetune_memory"], folder) as worker:
                worker.ask("train", data=few, model=folder / "genes", **how)
                found = worker.ask("train", data=data, model=folder / "genes", **how)
        names = ("tokens", "baseline", "above", "anonymous")
        sizes = " | ".join(f"{found[key] / 1e6:,.0f}" for key in names)
        print(f"| {n_cells:,} | {sizes} | {found['busy']:,.0f} |", flush=True)


def write_cells(path: Path, n_cells: int, args: argparse.Namespace) -> Path:
    """A file of cells with labels."""
    import h5py
    import numpy as np
    import pandas as pd
    from anndata.io import write_elem

    synthetic_files.write(path, counts_of(args, n_cells, gene_ids()), "contiguous")
    with h5py.File(path, "r+") as file:
        codes = np.arange(n_cells) % N_CLASSES
        write_elem(file["obs"], "label", pd.Categorical.from_codes(codes, [f"class-{n}" for n in range(N_CLASSES)]))
        file["obs"].attrs["column-order"] = ["label"]
    return path


class Side:
    """What a process does when it is asked."""

    def train(self, data: str, model: str, batch_cells: int, in_memory: int, threads: int) -> dict[str, float]:
        import torch

        import scfm
        from scfm.train.supervised import tokens

        torch.set_num_threads(threads)
        scfm.settings.progress, scfm.settings.threads = False, threads
        tokens.IN_MEMORY = in_memory
        rss.reset_peak()
        before, start = (rss.resident(), rss.anonymous()), process_time()
        with Watch() as watch:
            scfm.train.CellClassifier.setup_anndata(data, labels_key="label")
            classifier = scfm.train.CellClassifier(data, model=model, freeze=True)
            classifier.train(1, batch_size=batch_cells, lr=1e-3, accelerator="cpu")
        above, busy = rss.peak() - before[0], process_time() - start
        with classifier.backbone.session(data, classifier.setup) as session:
            n_tokens = sum(len(block.tokens) for block in session.tokens())
        sizes = {"tokens": 4 * n_tokens, "baseline": before[0], "above": above, "anonymous": watch.most - before[1]}
        return sizes | {"busy": busy}


class Watch:
    """Notes the most memory in use without pages of files, of which the system keeps no peak."""

    def __enter__(self) -> Watch:
        self.most, self._end = 0, Event()
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(SECONDS):
            self.most = max(self.most, rss.anonymous())


if __name__ == "__main__":
    serve(Side())
