"""Peak memory against the number of cells: a file into a store on disk, and a backed AnnData into memory. Linux only.

Each run is a process of its own, which first embeds a few cells in the same way: imports, the model and compiled code
are the baseline. The peak is then reset (``/proc/self/clear_refs``), and what is reported is the peak resident memory of
the run above the baseline. Pages of files that the system caches do not count.

Cells are made up block by block, so some of those of the first, the middle and the last block are made once more, embedded
in memory, and compared with what the run has stored. ``--backed`` holds its result in memory, 4 bytes a feature and cell.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from . import pictures, rss, synthetic_files
from .synthetic_files import BLOCK, LAYOUTS, Counts, counts_of, positive, suffix_of
from .worker import Worker, serve

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from numpy.typing import NDArray

MODEL, KEY = "scfm-mini", "X_scfm_mini"
LARGEST_DEVIATION = 5e-6
SAMPLE = 32
STORE, BACKED = "embed_store", "embed, backed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", type=positive, nargs="+", default=[20_000, 100_000])
    synthetic_files.add_sizes(parser, mean=200, most=300)
    parser.add_argument("--layout", choices=LAYOUTS, default="contiguous")
    parser.add_argument("--max-tokens", type=positive, default=128)
    parser.add_argument("--backed", action="store_true", help="also scfm.tl.embed on an AnnData opened as backed")
    parser.add_argument("--into-source", action="store_true", help="also store the embeddings in the file of the cells")
    parser.add_argument("--limit-above", type=float, help="MB above the baseline that embed_store may take")
    parser.add_argument(
        "--limit-growth", type=float, help="MB that embed_store may take more for most cells than for fewest"
    )
    pictures.add_argument(parser)


@dataclass(frozen=True)
class Row:
    """One run."""

    route: str
    n_cells: int
    baseline: float
    above: float
    rate: float
    checked: int
    deviation: float

    def __str__(self) -> str:
        sizes = f"{self.n_cells:,} | {self.baseline:,.0f} | {self.above:,.0f} | {self.rate:,.0f}"
        return f"| {self.route} | {sizes} | {self.checked:,} | {self.deviation:.1e} |"


def run(args: argparse.Namespace) -> None:
    rss.check()
    if args.backed and suffix_of(args.layout) != ".h5ad":
        msg = f"--backed reads an h5ad file, which --layout {args.layout} does not make."
        raise SystemExit(msg)
    print("| route | cells | baseline, MB | peak above baseline, MB | cells/s | rows checked | deviation |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for n_cells in sorted(args.cells):
        for row in measure(n_cells, args):
            print(row, flush=True)
            rows.append(row)
    if args.pictures:
        routes = dict.fromkeys(row.route for row in rows)
        series = {route: [(row.n_cells, row.above) for row in rows if row.route == route] for route in routes}
        what = "peak above baseline, MB"
        pictures.lines(args.pictures / "memory.png", "Memory against cells", series, "cells", what)
    if failures := failed(rows, args):
        raise SystemExit("\n" + "\n".join(failures))


def failed(rows: Sequence[Row], args: argparse.Namespace) -> list[str]:
    """What is not as it has to be."""
    found = [
        f"{row.route} of {row.n_cells:,} cells is {row.deviation:.1e} off, more than {LARGEST_DEVIATION}."
        for row in rows
        if not row.deviation <= LARGEST_DEVIATION  # NaN is a failure, too
    ]
    stored = [row for row in rows if row.route.startswith(STORE)]
    most = max(row.above for row in stored)
    if args.limit_above is not None and most > args.limit_above:
        found.append(f"embed_store took {most:,.0f} MB above the baseline, more than {args.limit_above:,.0f} MB.")
    growth = stored[-1].above - stored[0].above
    if args.limit_growth is not None and growth > args.limit_growth:
        numbers = f"from {stored[0].n_cells:,} to {stored[-1].n_cells:,} cells"
        found.append(f"embed_store took {growth:,.0f} MB more {numbers}, more than {args.limit_growth:,.0f} MB.")
    return found


def measure(n_cells: int, args: argparse.Namespace) -> list[Row]:
    """One row for each route."""
    counts, few = counts_of(args, n_cells), counts_of(args, min(n_cells, 64))
    sample = sampled(n_cells)
    expected = embedded(counts, sample, args.max_tokens)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder, suffix = Path(name), suffix_of(args.layout)
        small = synthetic_files.write(folder / f"few{suffix}", few, args.layout)
        data = synthetic_files.write(folder / f"cells{suffix}", counts, args.layout)
        for route in [BACKED] * args.backed + [STORE]:  # the store may be added to the file
            out = folder / ("result.npy" if route == BACKED else "result.zarr")
            how = {"max_tokens": args.max_tokens, "into_source": args.into_source and route == STORE}
            do = "backed" if route == BACKED else "store"
            with Worker([sys.executable, "-m", "benchmarks.memory"], folder) as worker:
                worker.ask(do, data=small, out=folder / f"few-{out.name}", **how)
                baseline = worker.ask("baseline")["rss"]
                reply = worker.ask(do, data=data, out=out, **how)
            found = stored_rows(out, sample)
            if how["into_source"]:
                found = np.stack([found, stored_rows(data, sample)])
                route = f"{STORE}, into_source"
            deviation = float(np.abs(found - expected).max())
            above, rate = (reply["peak"] - baseline) / 1e6, n_cells / reply["seconds"]
            rows.append(Row(route, n_cells, baseline / 1e6, above, rate, len(sample), deviation))
    return rows


def sampled(n_cells: int) -> list[int]:
    """Rows of the first, the middle and the last block, the borders of blocks among them."""
    n_blocks = -(-n_cells // BLOCK)
    rng = np.random.default_rng(0)
    rows: set[int] = {0, n_cells - 1}
    for block in {0, n_blocks // 2, n_blocks - 1}:
        start, stop = block * BLOCK, min((block + 1) * BLOCK, n_cells)
        rows |= {start, stop - 1, *rng.integers(start, stop, SAMPLE).tolist()}
    return sorted(rows)


def embedded(counts: Counts, rows: Sequence[int], max_tokens: int) -> NDArray[np.float32]:
    """What the rows have to be: the same cells, embedded in memory."""
    from scfm import model, settings

    settings.progress = False
    return model.load(MODEL).embed(counts.cells(rows), max_tokens=max_tokens, device="cpu", dtype="float32")


def stored_rows(path: Path, rows: Sequence[int]) -> NDArray[np.float32]:
    if path.suffix == ".npy":
        return np.asarray(np.load(path, mmap_mode="r")[rows])
    if path.suffix == ".h5ad":
        import h5py

        with h5py.File(path, "r") as file:
            return np.asarray(file[f"obsm/{KEY}"][rows])
    import zarr

    array: Any = zarr.open_group(path, mode="r")[f"obsm/{KEY}"]
    return np.asarray(array.oindex[np.asarray(rows)])


class Embedder:
    """What runs in the other process."""

    def __init__(self) -> None:
        os.environ["SCFM_PROGRESS"] = "false"
        import scfm

        self._scfm, self._model = scfm, scfm.model.load(MODEL)

    def baseline(self) -> dict[str, Any]:
        return {"rss": rss.resident()}

    def store(self, data: str, out: str, max_tokens: int, into_source: bool) -> dict[str, Any]:
        """A file into a store."""
        rss.reset_peak()
        start = perf_counter()
        how: dict[str, Any] = {"max_tokens": max_tokens, "device": "cpu", "dtype": "float32"}
        self._scfm.tl.embed_store(data, self._model, out, into_source=into_source, **how)
        return {"seconds": perf_counter() - start, "peak": rss.peak()}

    def backed(self, data: str, out: str, max_tokens: int, into_source: bool) -> dict[str, Any]:
        """A backed AnnData into memory; the result is written when the peak is known."""
        import anndata

        assert not into_source
        rss.reset_peak()
        start = perf_counter()
        adata = anndata.read_h5ad(data, backed="r")
        self._scfm.tl.embed(adata, self._model, max_tokens=max_tokens, device="cpu", dtype="float32")
        reply = {"seconds": perf_counter() - start, "peak": rss.peak()}
        np.save(out, np.asarray(adata.obsm[KEY]))
        return reply


if __name__ == "__main__":
    serve(Embedder())
