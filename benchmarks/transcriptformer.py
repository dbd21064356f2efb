"""TranscriptFormer from counts to embeddings: scfm against the published package, on a CPU in float32.

Each side is a process of its own with its own torch; both read the same random checkpoint in the published layout and
the same made-up cells, and take turns. Ratios are medians over the turns, each of which pairs two neighbouring runs.

Timed are, from AnnData in memory: preprocessing on one thread, to the tokens and counts of all cells, matching of genes
included; and embedding on all cores, from a loaded model to the array. Not timed are imports, compilation, and reading
of data, vocabularies and weights. Our model is loaded anew for each run, as it keeps the input states of genes that it
has seen. The published code pads every cell, and every batch to full size, so its batches are no larger than the data;
attention is not compiled there, because torch 2.5 cannot do it on a CPU.

With few layers, the heads that the published code also computes weigh more than in the published models. The column
"12 layers" counts what was spent in the layers as often as a model of 12 would.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np

from .worker import Stopwatch, Worker, peak_rss, serve

if TYPE_CHECKING:
    import argparse

    from anndata import AnnData
    from numpy.typing import NDArray

NEEDS_ARGUMENTS = True
PUBLISHED_LAYERS = 12
ASSAY = "10x 3' v3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--upstream-python", type=Path, required=True, help="of one with transcriptformer==0.6.1")
    parser.add_argument("--profile", type=Path, required=True, help=".h5ad with as many genes per cell as short cells")
    parser.add_argument("--cells", type=int, nargs=2, default=[32, 4], help="short and full cells to embed")
    parser.add_argument("--cells-preprocess", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8, help="upstream, whose default it is")
    parser.add_argument("--threads", type=int, default=None, help="of embedding (default: all cores)")
    sizes = parser.add_argument_group("sizes of the model (all but the layers as in tf_sapiens)")
    for name, default in (("layers", 3), ("heads", 16), ("embed-dim", 2048), ("model-dim", 2048), ("seq-len", 2047)):
        sizes.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("genes", 23_822), ("gene-width", 2560), ("gene-head-dim", 2048)):
        sizes.add_argument(f"--{name}", type=int, default=default)


def run(args: argparse.Namespace) -> None:
    from scfm._settings import settings

    threads = settings.threads if args.threads is None else args.threads
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, data = write_checkpoint(folder / "model", args), write_data(folder, args)
        workers = {side: Worker(command, folder) for side, command in commands(args, checkpoint).items()}
        with workers["upstream"] as upstream, workers["scfm"] as ours:
            versions = ", ".join(
                f"{side} with torch {worker.ask('about')['torch']}" for side, worker in workers.items()
            )
            print(f"{versions}; {threads} threads, {args.layers} layers of width {args.embed_dim}\n")
            upstream.ask("load")
            preprocessing(upstream, ours, data["preprocess"], args.repeats)
            embedding(upstream, ours, data, threads, args)
        memory(folder, checkpoint, data["short"], args)


# Checkpoint and cells


@dataclass(frozen=True)
class Cells:
    """A file of cells, and how many genes of the model each of them expresses."""

    path: Path
    n_columns: int
    n_genes: NDArray[np.int64]

    def tokens(self, seq_len: int) -> NDArray[np.int64]:
        """What our network reads of each cell: assay, start, and all but the last possible gene."""
        return np.minimum(self.n_genes, seq_len - 1) + 2


def write_checkpoint(folder: Path, args: argparse.Namespace) -> Path:
    from scfm.testing import write_transcriptformer

    return write_transcriptformer(
        folder,
        n_genes=args.genes,
        n_layers=args.layers,
        n_heads=args.heads,
        embed_dim=args.embed_dim,
        model_dim=args.model_dim,
        seq_len=args.seq_len,
        gene_width=args.gene_width,
        gene_head_dim=args.gene_head_dim,
        assays=[ASSAY],
    )


def write_data(folder: Path, args: argparse.Namespace) -> dict[str, Cells]:
    import anndata

    rng = np.random.default_rng(0)
    profile = anndata.read_h5ad(args.profile).X
    seen = np.asarray((profile > 0).sum(axis=1)).ravel()
    n_short, n_full = args.cells
    n_genes = {
        "warm": np.full(2, 20),
        "short": rng.choice(seen[seen > 0], n_short, replace=n_short > len(seen)),
        "full": np.full(n_full, args.seq_len + 253),
        "preprocess": rng.normal(1650, 150, args.cells_preprocess).clip(1, args.seq_len - 1).astype(np.int64),
    }
    data = {}
    for name, numbers in n_genes.items():
        adata = make_cells(args.genes, 36_000 - 23_822 if name == "preprocess" else 2_000, numbers)
        data[name] = Cells(folder / f"{name}.h5ad", adata.n_vars, numbers)
        adata.write_h5ad(data[name].path)
    return data


def make_cells(n_known: int, n_unknown: int, n_genes: NDArray[np.int64], seed: int = 1) -> AnnData:
    """Cells with given numbers of genes that the model knows, and others in proportion; columns in random order.

    All genes are equally likely, so that cells share as few as can be.
    """
    import anndata
    import pandas as pd
    from scipy import sparse

    rng = np.random.default_rng(seed)
    ids = np.array([f"ENSG{i + 1:011d}" for i in range(n_known)] + [f"ENSG9{i:010d}" for i in range(n_unknown)])
    order = rng.permutation(len(ids))
    column = np.argsort(order)
    rows = []
    for n in n_genes:
        known = rng.choice(n_known, min(n, n_known), replace=False)
        unknown = n_known + rng.choice(n_unknown, min(n_unknown, n * n_unknown // n_known), replace=False)
        rows.append(np.sort(column[np.concatenate([known, unknown])]))
    indptr = np.cumsum([0, *map(len, rows)])
    counts = rng.geometric(0.4, indptr[-1]).astype(np.float32)
    x = sparse.csr_matrix((counts, np.concatenate(rows), indptr), shape=(len(rows), len(ids)))
    obs = pd.DataFrame({"assay": [ASSAY] * len(rows)}, index=[f"cell{i}" for i in range(len(rows))])
    return anndata.AnnData(x, obs, pd.DataFrame({"ensembl_id": ids[order]}, index=ids[order]))


# What is compared


def preprocessing(upstream: Worker, ours: Worker, cells: Cells, repeats: int) -> None:
    out = [cells.path.with_suffix(f".{side}.npz") for side in ("upstream", "scfm")]
    replies = []
    for turn in range(repeats + 1):  # the first one compiles
        a, b = (
            upstream.ask("preprocess", data=cells.path, out=out[0]),
            ours.ask("preprocess", data=cells.path, out=out[1]),
        )
        replies += [(a, b)] if turn else []
    times = [[reply["seconds"] for reply in pair] for pair in replies]
    matched = median(b["matched"] for _, b in replies)
    theirs, found = (np.load(file) for file in out)
    same = all(np.array_equal(theirs[key], found[key]) for key in ("tokens", "counts"))
    columns = "upstream, cells/s on one core | scfm, cells/s | ratio | tokens and counts"
    print(f"| preprocessing: cells | columns | genes a cell | {columns} |")
    print("|---|---|---|---|---|---|---|")
    row = f"{len(cells.n_genes):,} | {cells.n_columns:,} | {cells.n_genes.mean():,.0f}"
    print(f"| {row} | {rates(len(cells.n_genes), times)} | {'equal' if same else 'DIFFERENT'} |")
    print(
        f"\nMatching of genes, once a file, takes {matched:.3f} s of our {median(b for _, b in times):.3f} s.\n",
        flush=True,
    )


def embedding(upstream: Worker, ours: Worker, data: dict[str, Cells], threads: int, args: argparse.Namespace) -> None:
    how: dict[str, Any] = {"threads": threads, "batch_size": args.batch_size}
    names, speeds = ("short", "full"), []
    replies: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {name: [] for name in names}
    for turn in range(args.repeats + 1):
        for name in names if turn else ("warm",):
            path = data[name].path
            a = upstream.ask("embed", data=path, out=path.with_suffix(".upstream.npy"), **how)
            b = ours.ask("embed", data=path, out=path.with_suffix(".scfm.npy"), **how)
            replies.setdefault(name, []).append((a, b))
        speeds.append(ours.ask("gemm", n=args.seq_len + 1, size=args.embed_dim, threads=threads)["flops"])
    columns = "upstream, cells/s | scfm, cells/s | ratio | 12 layers | share of GEMM rate | deviation"
    print(f"| embedding: cells | genes a cell | {columns} |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        cells, pairs = data[name], replies[name]
        times = [[reply["seconds"] for reply in pair] for pair in pairs]
        deeper = [[as_published(reply, args.layers) for reply in pair] for pair in pairs]
        share = flops(cells.tokens(args.seq_len), args) / max(speeds) / median(ours for _, ours in times)
        found = f"{name} | {cells.n_genes.mean():,.0f} | {rates(len(cells.n_genes), times)}"
        print(f"| {found} | {ratio(deeper)[0]} | {share:.0%} | {deviation(cells.path)} |", flush=True)
    print(f"\nGEMM rate: {max(speeds) / 1e9:.0f} GFLOP/s, the best of {len(speeds)}")
    for name in names:
        cpu, wall = (
            np.array([[r[key] for r in pair] for pair in replies[name]]).sum(axis=0) for key in ("cpu", "seconds")
        )
        a, b = cpu / wall
        print(
            f"{name}: {a:.2f} and {b:.2f} cores in use, which others may hold down; ratio of CPU times {cpu[0] / cpu[1]:.1f}"
        )
    print(flush=True)


def memory(folder: Path, checkpoint: Path, cells: Cells, args: argparse.Namespace) -> None:
    print("| peak memory | upstream, GB | scfm, GB | ratio |")
    print("|---|---|---|---|")
    found: dict[str, list[float]] = {"after imports": [], f"{len(cells.n_genes)} short cells": []}
    for command in commands(args, checkpoint).values():
        with Worker(command, folder) as worker:
            sizes = worker.ask("about"), worker.ask("whole", data=cells.path, batch_size=args.batch_size)
        for numbers, reply in zip(found.values(), sizes, strict=True):
            numbers.append(reply["rss"] / 1e9)
    for what, (a, b) in found.items():
        print(f"| {what} | {a:.2f} | {b:.2f} | {a / b:.1f} |")


def rates(n_cells: int, times: list[list[float]]) -> str:
    """Cells per second of both sides and the ratio, with that of each turn."""
    a, b = (n_cells / median(side) for side in zip(*times, strict=True))
    middle, each = ratio(times)
    return f"{a:,.3g} | {b:,.3g} | {middle} ({each})" if b < 1000 else f"{a:,.0f} | {b:,.0f} | {middle} ({each})"


def ratio(times: list[list[float]]) -> tuple[str, str]:
    each = [upstream / ours for upstream, ours in times]
    return f"{median(each):.1f}", ", ".join(f"{value:.1f}" for value in each)


def as_published(reply: dict[str, float], n_layers: int) -> float:
    return reply["seconds"] + reply["layers"] * (PUBLISHED_LAYERS / n_layers - 1)


def deviation(path: Path) -> str:
    a, b = (np.load(path.with_suffix(f".{side}.npy")) for side in ("upstream", "scfm"))
    return f"{np.abs(a - b).max():.1e} of {np.abs(a).max():.2g}"


def flops(tokens: NDArray[np.int64], args: argparse.Namespace) -> float:
    """Operations of the layers: products with weights, and causal attention."""
    d, wide = args.embed_dim, args.model_dim
    return args.layers * float((tokens * 2 * (4 * d * d + 2 * d * wide) + tokens * 2 * 2 * d * tokens / 2).sum())


# Both sides, and our worker


def commands(args: argparse.Namespace, checkpoint: Path) -> dict[str, list[str]]:
    upstream = [str(args.upstream_python.absolute()), "-m", "benchmarks.upstream_transcriptformer"]
    ours = [sys.executable, "-m", "benchmarks.transcriptformer"]
    return {"upstream": [*upstream, str(checkpoint)], "scfm": [*ours, str(checkpoint)]}


class Ours:
    """What the worker of the published package does, with scfm."""

    def __init__(self, checkpoint: str) -> None:
        import anndata  # noqa: F401
        import torch

        import scfm

        self._checkpoint, self._scfm, self._torch = checkpoint, scfm, torch
        self._data: dict[str, AnnData] = {}

    def about(self) -> dict[str, Any]:
        return {"torch": self._torch.__version__, "rss": peak_rss()}

    def preprocess(self, data: str, out: str) -> dict[str, Any]:
        """Counts to the tokens of all cells on one thread; writes tokens and counts of genes."""
        from scfm.model.arguments import Arguments

        settings, model, adata = self._scfm.settings, self._scfm.model.load(self._checkpoint), self._read(data)
        settings.threads = 1
        start = perf_counter()
        with model.session(adata, Arguments(device="cpu")) as session:
            encode = session.model.encoder(session.source, session.genes, session.options)
            matched = perf_counter() - start
            blocks = [
                encode(block) for block in session.source.blocks(settings.block_rows, max_nnz=settings.block_values)
            ]
        seconds = perf_counter() - start
        settings.reset()
        is_gene = [np.ones(len(block.tokens), dtype=bool) for block in blocks]
        for block, which in zip(blocks, is_gene, strict=True):
            which[block.offsets[:-1]] = which[block.offsets[:-1] + 1] = False  # assay and start
        tokens = np.concatenate([block.tokens[which] for block, which in zip(blocks, is_gene, strict=True)])
        counts = [block.values[which] for block, which in zip(blocks, is_gene, strict=True) if block.values is not None]
        np.savez(out, tokens=tokens, counts=np.concatenate(counts))
        return {"seconds": seconds, "matched": matched}

    def embed(self, data: str, out: str, threads: int, batch_size: int) -> dict[str, Any]:
        """Counts to embeddings with a model that has seen no cell yet."""
        torch, adata, model = self._torch, self._read(data), self._scfm.model.load(self._checkpoint)
        torch.set_num_threads(threads)
        network: Any = model.networks(model.n_layers, [torch.device("cpu")], torch.float32)[0]
        layers = Stopwatch(network.layers[0], network.layers[-1])
        start, cpu = perf_counter(), process_time()
        embedding = model.embed(adata, device="cpu", dtype="float32")
        seconds, cpu = perf_counter() - start, process_time() - cpu
        np.save(out, embedding)
        return {"seconds": seconds, "cpu": cpu, "layers": layers.seconds}

    def gemm(self, n: int, size: int, threads: int) -> dict[str, Any]:
        """Operations per second of the largest product of a layer."""
        from .encoder import take_turns

        torch = self._torch
        torch.set_num_threads(threads)
        a, b, out = torch.randn(n, size), torch.randn(3 * size, size).T, torch.empty(n, 3 * size)
        seconds = take_turns({"mm": lambda: torch.mm(a, b, out=out)}, 5)[0]["mm"]
        return {"flops": 2 * n * size * 3 * size / seconds}

    def whole(self, data: str, batch_size: int) -> dict[str, Any]:
        """Everything that a user runs, for its peak memory."""
        self._scfm.model.load(self._checkpoint).embed(self._read(data), device="cpu")
        return {"rss": peak_rss()}

    def _read(self, path: str) -> AnnData:
        import anndata

        if path not in self._data:
            self._data[path] = anndata.read_h5ad(path)
        return self._data[path]


if __name__ == "__main__":
    serve(Ours(sys.argv[1]))
