"""Cells per second of readers of one matrix, stored in several ways and read from start to end.

All readers deliver the columns and values of the same cells as arrays in memory, take turns, and are compared by
medians. Timed is what comes after opening. The file has been read before, so that what is measured is not the disk.

Raw slices are what nothing can beat without threads of its own: two slices of the stored arrays for 1,024 rows, with
the row pointers in memory and no check of anything. Ours also checks the values, adds up each cell, and sees to it that
no gene comes twice. Of a backed AnnData, `X` is taken once and then sliced: taken anew, it reads the row pointers anew.
"""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from . import pictures, synthetic_files
from .synthetic_files import LAYOUTS, counts_of, positive, suffix_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    Blocks = Iterable[tuple[NDArray[Any], NDArray[Any]]]
    Reader = Callable[[Path], AbstractContextManager[Blocks]]

ROWS = 1024
RAW, BACKED = "raw slices, 1,024 rows", "backed AnnData, 1,024 rows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", type=positive, default=20_000)
    synthetic_files.add_sizes(parser, mean=1500, most=1800)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--repeats", type=positive, default=3)
    pictures.add_argument(parser)


def run(args: argparse.Namespace) -> None:
    from scfm import settings

    counts = counts_of(args, args.cells)
    with tempfile.TemporaryDirectory() as name:
        files = {
            layout: synthetic_files.write(Path(name) / f"{layout}{suffix_of(layout)}", counts, layout)
            for layout in args.layouts
        }
        found = measure(files, args.repeats)
    rates = {
        reader: {layout: args.cells / x if isinstance(x, float) else x for layout, x in by_layout.items()}
        for reader, by_layout in found.items()
    }
    print(
        f"{args.cells:,} cells of {args.mean:,} genes, {settings.threads} threads; cells/s, and ratios in their order\n"
    )
    print(f"| reader | {' | '.join(args.layouts)} | ratio to raw | ratio to backed slices |")
    print("|---" * (len(args.layouts) + 3) + "|")
    for reader, by_layout in rates.items():
        cells = [f"{x:,.0f}" if isinstance(x, float) else x for x in by_layout.values()]
        print(
            f"| {reader} | {' | '.join(cells)} | {ratios(by_layout, rates[RAW])} | {ratios(by_layout, rates[BACKED])} |"
        )
    print()
    for layout in args.layouts:
        print(f"{layout}: {LAYOUTS[layout]}")
    if args.pictures:
        bars = {reader: [x if isinstance(x, float) else 0 for x in row.values()] for reader, row in rates.items()}
        pictures.bars(args.pictures / "readers.png", "Reading counts", args.layouts, bars, "cells/s")


def ratios(rates: dict[str, float | str], to: dict[str, float | str]) -> str:
    found = []
    for layout, rate in rates.items():
        other = to[layout]
        found.append(f"{rate / other:.2f}" if isinstance(rate, float) and isinstance(other, float) else "–")
    return " / ".join(found)


def measure(files: dict[str, Path], repeats: int) -> dict[str, dict[str, float | str]]:
    """Median seconds of each reader and layout, or why there are none."""
    found: dict[str, dict[str, float | str]] = {reader: {} for reader in READERS}
    for layout, path in files.items():
        sums: dict[str, tuple[int, int, int]] = {}
        times: dict[str, list[float]] = {}
        for turn in range(repeats + 1):
            for reader, (function, suffixes) in READERS.items():
                if path.suffix not in suffixes:
                    found[reader][layout] = "–"
                    continue
                try:
                    with function(path) as blocks:
                        if not turn:  # fills the page cache and compiles
                            sums[reader] = summed(blocks)
                            continue
                        start = perf_counter()
                        nnz = sum(min(len(columns), len(values)) for columns, values in blocks)
                        times.setdefault(reader, []).append(perf_counter() - start)
                except ImportError as error:
                    found[reader][layout] = f"not installed: {error.name}"
                    continue
                if nnz != sums[RAW][0]:
                    msg = f"{reader} read {nnz} values of {path.name}, not {sums[RAW][0]}."
                    raise SystemExit(msg)
        if len(set(sums.values())) > 1:
            msg = f"Readers differ in number of values, sum of columns or sum of values of {path.name}: {sums}"
            raise SystemExit(msg)
        for reader, seconds in times.items():
            found[reader][layout] = median(seconds)
    return found


def summed(blocks: Blocks) -> tuple[int, int, int]:
    """Number of values, sum of columns, sum of values."""
    parts = [
        (len(values), int(columns.sum(dtype=np.int64)), int(values.sum(dtype=np.float64))) for columns, values in blocks
    ]
    n, columns, values = (sum(numbers) for numbers in zip(*parts, strict=True))
    return n, columns, values


# Readers


@contextmanager
def group_of(path: Path) -> Iterator[Any]:
    if path.suffix == ".h5ad":
        import h5py

        with h5py.File(path, "r") as file:
            yield file
    else:
        import zarr

        yield zarr.open_group(path, mode="r")


@contextmanager
def raw(path: Path) -> Iterator[Blocks]:
    with group_of(path) as file:
        columns, values, indptr = file["X/indices"], file["X/data"], file["X/indptr"][...]
        borders = [*indptr[:-1:ROWS].tolist(), int(indptr[-1])]
        yield ((columns[low:high], values[low:high]) for low, high in pairwise(borders))


@contextmanager
def ours(path: Path, rows: int) -> Iterator[Blocks]:
    from scfm.read import open_counts

    with open_counts(path) as source:
        yield ((block.indices, block.data) for block in source.blocks(rows=rows))


@contextmanager
def backed(path: Path) -> Iterator[Blocks]:
    import anndata

    with ExitStack() as stack:
        if path.suffix == ".h5ad":
            adata = anndata.read_h5ad(path, backed="r")
            stack.callback(adata.file.close)
            x = adata.X
        else:  # the object that a backed AnnData would hold
            x = anndata.io.sparse_dataset(stack.enter_context(group_of(path))["X"])
        yield ((part.indices, part.data) for part in (x[row : row + ROWS] for row in range(0, x.shape[0], ROWS)))


@contextmanager
def collection(path: Path) -> Iterator[Blocks]:
    import anndata
    from anndata.experimental import AnnCollection

    adata = anndata.read_h5ad(path, backed="r")
    with closing(adata.file):
        cells = AnnCollection([adata], join_vars="inner")
        parts = (cells[row : row + 64].X for row in range(0, adata.n_obs, 64))
        yield ((part.indices, part.data) for part in parts)


@contextmanager
def lazy(path: Path) -> Iterator[Blocks]:
    import xarray  # noqa: F401  (what read_lazy needs, named if it is not there)
    from anndata.experimental import read_lazy

    with group_of(path) as file:
        x = read_lazy(file).X
        parts = (x.blocks[chunk, 0].compute(scheduler="synchronous") for chunk in range(x.numblocks[0]))
        yield ((part.indices, part.data) for part in parts)


@contextmanager
def annbatch(path: Path) -> Iterator[Blocks]:
    """As its documentation advises for local files: with the codecs of zarrs, if they are installed."""
    import anndata
    import zarr
    from annbatch import Loader  # type: ignore[import-not-found, unused-ignore]

    try:
        import zarrs  # noqa: F401
    except ImportError:
        pipeline = {}
    else:
        pipeline = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
    with zarr.config.set(pipeline), group_of(path) as file:
        loader = Loader(batch_size=ROWS, chunk_size=ROWS, preload_nchunks=4, preload_to_gpu=False)
        loader.add_dataset(anndata.io.sparse_dataset(file["X"]))
        yield ((batch["X"].indices, batch["X"].data) for batch in loader)


READERS: dict[str, tuple[Reader, tuple[str, ...]]] = {
    RAW: (raw, (".h5ad", ".zarr")),
    "scfm, 1,024 rows": (partial(ours, rows=1024), (".h5ad", ".zarr")),
    "scfm, 4,096 rows": (partial(ours, rows=4096), (".h5ad", ".zarr")),
    BACKED: (backed, (".h5ad", ".zarr")),
    "AnnCollection, 64 rows": (collection, (".h5ad",)),
    "read_lazy, chunk by chunk": (lazy, (".h5ad", ".zarr")),
    "annbatch, 4 × 1,024 rows": (annbatch, (".zarr",)),
}
