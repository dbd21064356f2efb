"""Attention averaged over cells: ours against transformers with output_attentions=True. Linux only.

Both have the same random weights and cells and run in float32, each in a process of its own; both add up the means over
heads of the last layer, the same sums for the same pairs of genes. The peer takes a cell at a time, which is its least memory:
``attn_implementation="eager"``, as no other gives attentions. ``v1`` are the sizes of Geneformer V1 (10M), ``v2`` those of V2
(104M). Peaks are of resident memory above that before the run, and ratios are of CPU time, turn by turn.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np

from . import rss
from .synthetic_files import positive
from .worker import Worker, serve

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scfm.tasks import PairMeans

N_QUERIES, FIRST = 50, 4
"""Genes whose attention is added up, all in each cell, and the token of the first one."""
OURS, PEER = "scfm", "transformers, eager"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", nargs="+", choices=("v1", "v2"), default=["v1", "v2"])
    parser.add_argument("--layers", type=positive, help="layers of the network, those of the model by default")
    parser.add_argument("--genes", type=positive, default=1000, help="genes of each cell")
    parser.add_argument("--cells", type=positive, default=4)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--threads", type=positive, default=1)


def run(args: argparse.Namespace) -> None:
    import torch

    rss.check()
    print(f"torch {torch.__version__}, {args.threads} threads, {args.cells} cells of {args.genes:,} genes\n")
    print("| | CPU s a cell | ratio to scfm (lowest, highest of a turn) | peak, MB | ratio | largest difference |")
    print("|---|---|---|---|---|---|")
    for shape in args.shape:
        for line in compared(shape, args):
            print(line, flush=True)


def compared(shape: str, args: argparse.Namespace) -> list[str]:
    """A line for each way."""
    turns: dict[str, list[dict[str, float]]] = {OURS: [], PEER: []}
    with tempfile.TemporaryDirectory() as name:
        folder, command = Path(name), [sys.executable, "-m", "benchmarks.attention"]
        setup = {"shape": shape, "layers": args.layers, "genes": args.genes, "cells": args.cells}
        with Worker(command, folder) as ours, Worker(command, folder) as peer:
            ways = {OURS: ours, PEER: peer}
            for way, worker in ways.items():
                worker.ask("setup", way=way, threads=args.threads, **setup)
            for _ in range(args.repeats + 1):
                for way, worker in ways.items():
                    found = worker.ask("measure", out=folder / f"{way}.npy")
                    turns[way].append(found)
        sums = {way: np.load(folder / f"{way}.npy") for way in ways}
    base, lines = turns[OURS], []
    for way, times in turns.items():
        # the time of the first turn does not count, its memory does: later ones may find some at hand
        ratios = [theirs["cpu"] / our["cpu"] for theirs, our in zip(times[1:], base[1:], strict=True)]
        peak, least = (max(time["peak"] for time in one) for one in (times, base))
        seconds = median(time["cpu"] for time in times[1:]) / args.cells
        spread = f"{median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
        error = np.abs(sums[way] - sums[OURS]).max()
        lines.append(
            f"| {shape}, {way} | {seconds:.2f} | {spread} | {peak / 1e6:,.0f} | {peak / least:.1f} | {error:.1e} |"
        )
    return lines


class Averages:
    """What runs in the other processes."""

    def setup(self, way: str, shape: str, layers: int | None, genes: int, cells: int, threads: int) -> dict[str, Any]:
        """Make the network and the cells, and average a short one, for what is loaded at the first use."""
        import torch
        import transformers

        from .perturb import SHAPES, SHARED

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        sizes: dict[str, Any] = SHAPES[shape] | SHARED | ({} if layers is None else {"num_hidden_layers": layers})
        config = transformers.BertConfig(**sizes)
        network: Any = transformers.BertModel._from_config(config, add_pooling_layer=False, attn_implementation="eager")
        if way == OURS:
            from scfm.nn import BertConfig, BertEncoder

            tensors = {f"bert.{name}": tensor for name, tensor in network.state_dict().items()}
            network = BertEncoder(BertConfig.from_dict(sizes))
            network.load_published(tensors)
        self._network, self._n_tokens = network.eval(), sizes["vocab_size"]
        rng = np.random.default_rng(0)
        others = np.arange(FIRST + N_QUERIES, self._n_tokens)
        queries = np.arange(FIRST, FIRST + N_QUERIES)
        chosen = [np.concatenate([queries, rng.choice(others, genes - N_QUERIES, replace=False)]) for _ in range(cells)]
        self._average: Callable[[PairMeans], None] = self._ours if way == OURS else self._theirs
        self._cells = [queries.astype(np.int32)]
        self._average(self._pairs())
        self._cells = [rng.permutation(cell).astype(np.int32) for cell in chosen]
        return {}

    def measure(self, out: str) -> dict[str, float]:
        """Add up the attention in all cells."""
        pairs = self._pairs()
        rss.reset_peak()
        before, began = rss.resident(), (process_time(), perf_counter())
        self._average(pairs)
        found = {"cpu": process_time() - began[0], "wall": perf_counter() - began[1], "peak": rss.peak() - before}
        np.save(out, pairs.sums)
        return found

    def _pairs(self) -> PairMeans:
        from scfm.tasks import PairMeans

        queries, keys = (np.arange(FIRST, stop, dtype=np.int32) for stop in (FIRST + N_QUERIES, self._n_tokens))
        return PairMeans(queries, keys, np.zeros(len(self._cells), np.int64), 1)

    def _ours(self, pairs: PairMeans) -> None:
        import torch

        from scfm.batch import plan_batches
        from scfm.tasks import Attention

        task = Attention(_Recipe(), None, "mean", pairs)
        compute = task.make_forward(self._network, torch.device("cpu"), torch.float32)
        with torch.inference_mode():
            for block in task.edit(_block_of(self._cells)):
                for batch in plan_batches(block, task.batch_tokens):
                    task.sink.write(batch, compute(batch))

    def _theirs(self, pairs: PairMeans) -> None:
        import torch

        from scfm.batch import make_batch

        block = _block_of(self._cells)
        with torch.inference_mode():
            for row, cell in enumerate(self._cells):
                ids = torch.from_numpy(cell)[None].long()
                found = self._network(ids, attention_mask=torch.ones_like(ids), output_attentions=True)
                pairs.write(make_batch(block, np.array([row])), found.attentions[-1][0].mean(dim=0))


class _Recipe:
    """As much of a model as the task asks for."""

    def attention_tiles(self, network: Any, batch: Any, options: None) -> Any:
        import torch

        return network.attention_tiles(torch.from_numpy(batch.tokens), batch.lengths)


def _block_of(cells: list[NDArray[np.int32]]) -> Any:
    from scfm.model import TokenBlock

    lengths = np.array([len(cell) for cell in cells])
    return TokenBlock(0, np.concatenate(cells), np.concatenate([[0], np.cumsum(lengths)]), lengths)


if __name__ == "__main__":
    serve(Averages())
