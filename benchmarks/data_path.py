"""From a file to batches of tokens, without a network: scfm against both data sets of the published TranscriptFormer.

Upstream makes padded batches of 8 cells, from a file that is read whole or, with ``use_oom_dataloader``, cell by cell from
a backed AnnData; ours are those of every run: blocks are read and encoded ahead, and batches are packed up to a token
budget. All take the same file and the same vocabulary, and the number of gene tokens has to be the same.

Each run is a process of its own, which first does the same with a few cells; the peak of memory is counted from there.
Timed is everything from opening the file to the last batch. Turns alternate; medians. Linux only.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from . import pictures, rss, synthetic_files
from .synthetic_files import counts_of, positive
from .transcriptformer import ASSAY
from .worker import Worker, serve

if TYPE_CHECKING:
    import argparse

NEEDS_ARGUMENTS = True
FEW = 64
# route, side, what its worker is asked for
ROUTES = {
    "transcriptformer, in memory": ("upstream", "memory"),
    "transcriptformer, out of memory": ("upstream", "oom"),
    "scfm": ("scfm", "batches"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from scfm import settings

    parser.add_argument("--upstream-python", type=Path, required=True, help="of one with transcriptformer==0.6.1")
    parser.add_argument("--cells", type=positive, default=20_000)
    synthetic_files.add_sizes(parser, mean=1500, most=1800)
    parser.add_argument("--known", type=positive, default=16_000, help="columns that are genes of the model")
    parser.add_argument("--layout", choices=["contiguous", "chunked", "gzip"], default="chunked")
    parser.add_argument("--seq-len", type=positive, default=2047, help="most genes of a cell, as in tf_sapiens")
    parser.add_argument("--batch-size", type=positive, default=8, help="upstream, whose default it is")
    parser.add_argument("--threads", type=positive, default=settings.threads)
    parser.add_argument("--repeats", type=positive, default=3)
    pictures.add_argument(parser)


def run(args: argparse.Namespace) -> None:
    rss.check()
    if not args.upstream_python.is_file():
        msg = f"--upstream-python: there is no {args.upstream_python}."
        raise SystemExit(msg)
    if args.known > args.genes or args.most >= args.seq_len:
        msg = "--known must not be more than --genes, and --most must be less than --seq-len: no cell is to be cut."
        raise SystemExit(msg)
    replies: dict[str, list[dict[str, float]]] = {route: [] for route in ROUTES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_checkpoint(folder / "model", args)
        few = write_data(folder / "few.h5ad", min(FEW, args.cells), args)
        data = write_data(folder / "cells.h5ad", args.cells, args)
        for _ in range(args.repeats):
            for route, (side, do) in ROUTES.items():
                replies[route].append(measure(command(side, checkpoint, args), folder, do, few, data, args))
    tokens = {route: {reply["tokens"] for reply in found} for route, found in replies.items()}
    rates = {route: args.cells / median(reply["seconds"] for reply in found) for route, found in replies.items()}
    above, baseline = (
        {route: median(reply[key] for reply in found) for route, found in replies.items()}
        for key in ("above", "baseline")
    )
    print(
        f"{args.cells:,} cells of {args.mean:,} genes, {args.genes:,} columns, {args.layout}; {args.threads} threads\n"
    )
    print("| data path | cells/s | scfm is faster by | baseline, MB | peak above it, MB | of scfm's | tokens |")
    print("|---|---|---|---|---|---|---|")
    for route in ROUTES:
        speed, memory = rates["scfm"] / rates[route], above[route] / above["scfm"]
        numbers = " ".join(f"{number:,.0f}" for number in sorted(tokens[route]))
        sizes = f"{baseline[route]:,.0f} | {above[route]:,.0f} | {memory:.2g}×"
        print(f"| {route} | {rates[route]:,.0f} | {speed:.1f}× | {sizes} | {numbers} |")
    if args.pictures:
        draw(args.pictures / "data_path.png", rates, above)
    if len(set.union(*tokens.values())) > 1:
        msg = "The routes differ in the number of tokens."
        raise SystemExit(msg)


def draw(path: Path, rates: dict[str, float], above: dict[str, float]) -> None:
    for what, values in (("cells/s", rates), ("peak above baseline, MB", above)):
        at = path if values is rates else path.with_stem(f"{path.stem}_memory")
        series = {route: [value] for route, value in values.items()}
        pictures.bars(at, "From a file to batches of tokens", [""], series, what)


def write_checkpoint(folder: Path, args: argparse.Namespace) -> Path:
    from scfm.testing import write_transcriptformer

    return write_transcriptformer(folder, n_genes=args.known, seq_len=args.seq_len, assays=[ASSAY])


def write_data(path: Path, n_cells: int, args: argparse.Namespace) -> Path:
    """A file with the annotations that upstream reads: ids in a column of var, and the assay of each cell."""
    import h5py
    import pandas as pd
    from anndata.io import write_elem

    known = [f"ENSG{number:011d}" for number in range(1, args.known + 1)]
    unknown = [f"ENSG9{number:010d}" for number in range(args.genes - args.known)]
    counts = counts_of(args, n_cells, (*known, *unknown))
    synthetic_files.write(path, counts, args.layout)
    with h5py.File(path, "r+") as file:
        write_elem(file["obs"], "assay", pd.Categorical([ASSAY] * n_cells))
        file["obs"].attrs["column-order"] = ["assay"]
    return path


def command(side: str, checkpoint: Path, args: argparse.Namespace) -> list[str]:
    if side == "upstream":
        return [str(args.upstream_python.absolute()), "-m", "benchmarks.upstream_data_path", str(checkpoint)]
    return [sys.executable, "-m", "benchmarks.data_path", str(checkpoint)]


def measure(
    command: list[str], folder: Path, do: str, few: Path, data: Path, args: argparse.Namespace
) -> dict[str, float]:
    """Seconds, tokens, and megabytes above the baseline of one run in a process of its own."""
    how = {"batch_size": args.batch_size, "threads": args.threads}
    with Worker(command, folder) as worker:
        worker.ask("load")
        worker.ask(do, data=few, **how)
        baseline = worker.ask("baseline")["rss"]
        reply = worker.ask(do, data=data, **how)
    sizes = {"baseline": baseline / 1e6, "above": (reply["peak"] - baseline) / 1e6}
    return {"seconds": reply["seconds"], "tokens": reply["tokens"]} | sizes


class Ours:
    """What the worker of the published package does, with scfm."""

    def __init__(self, checkpoint: str) -> None:
        import torch

        import scfm

        self._checkpoint, self._scfm, self._torch = checkpoint, scfm, torch

    def load(self) -> dict[str, Any]:
        """Read the vocabularies."""
        self._model = self._scfm.model.load(self._checkpoint)
        return {}

    def baseline(self) -> dict[str, Any]:
        return {"rss": rss.resident()}

    def batches(self, data: str, batch_size: int, threads: int) -> dict[str, Any]:
        """A file to all its batches, which nobody computes."""
        from scfm.model.arguments import Arguments

        from .end_to_end import Nothing

        settings = self._scfm.settings
        settings.threads, settings.progress = threads, False
        self._torch.set_num_threads(threads)
        rss.reset_peak()
        start = perf_counter()
        with self._model.session(data, Arguments(device="cpu", hidden_layer=-self._model.n_layers)) as session:
            stats = session.run(Nothing())
        seconds = perf_counter() - start
        # each cell has two tokens that are no genes: its assay and the start
        return {"seconds": seconds, "peak": rss.peak(), "tokens": stats.n_tokens - 2 * stats.n_cells}


if __name__ == "__main__":
    serve(Ours(sys.argv[1]))
