"""What looking at files before they are read costs, and what having results on the disk before they get their name costs.

The same call with and without takes turns, in pairs, in one process; the ratios are of medians. Processor time is that of
all threads, and says what the checks cost also where others use the machine. Files have been read before, so that what is
measured is not the disk.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from . import synthetic_files
from .synthetic_files import Counts, counts_of, positive, suffix_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

LAYOUTS = ("chunked", "gzip", "zarr", "sharded")
CHECKS = ("_local.check_regular", "arrays.check_packed", "arrays.check_chunks")
DENSE = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", type=positive, default=10_000)
    synthetic_files.add_sizes(parser, mean=1500, most=1800)
    parser.add_argument("--embedded", type=positive, default=500, help="cells of 200 genes, which are embedded")
    parser.add_argument("--pairs", type=positive, default=10)


def run(args: argparse.Namespace) -> None:
    import scfm
    from scfm import settings

    warnings.filterwarnings("ignore", message="zarr v3 autosharding")
    settings.progress, model = False, scfm.model.load("scfm-mini")
    print(f"{args.cells:,} cells of {args.mean:,} genes, {args.pairs} pairs, {settings.threads} threads; medians\n")
    print("| what | | seconds with | without | ratio | of processor time |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for what, path in write(Path(name), args).items():
            compare(f"looking at files | reading {what}", partial(read, path), unchecked, args.pairs)
        small = Counts(args.embedded, n_genes=args.genes, seed=args.seed)
        files = {
            kind: synthetic_files.write(Path(name) / f"small{suffix_of(kind)}", small, kind)
            for kind in ("gzip", "zarr")
        }
        for what, path in files.items():
            call = partial(model.embed, path, device="cpu")
            compare(f"looking at files | embedding {what}", call, unchecked, args.pairs)
        calls: dict[str, Callable[..., Any]] = {
            "tl.embed, h5ad": partial(scfm.tl.embed, files["gzip"], out=Path(name) / "out.h5ad", overwrite=True),
            "tl.embed, zarr": partial(scfm.tl.embed, files["zarr"], out=Path(name) / "out.zarr", overwrite=True),
            "tl.embed_store": partial(stored, files["gzip"], Path(name) / "store.zarr"),
        }
        for what, function in calls.items():
            call = partial(function, model=model, device="cpu")
            compare(f"fsync | {what}", call, unsynced, args.pairs)


def write(folder: Path, args: argparse.Namespace) -> dict[str, Path]:
    """Sparse counts in several layouts, and fewer dense ones."""
    import anndata as ad

    counts = counts_of(args, args.cells)
    files = {
        layout: synthetic_files.write(folder / f"{layout}{suffix_of(layout)}", counts, layout) for layout in LAYOUTS
    }
    dense = ad.read_h5ad(files["chunked"])[:DENSE].copy()
    dense.X = dense.X.toarray()
    for kind, compression in (("dense", None), ("dense, gzip", "gzip")):
        files[kind] = folder / f"{kind}.h5ad"
        dense.write_h5ad(files[kind], compression=compression)
    return files


def read(path: Path) -> None:
    from scfm.read import open_counts

    with open_counts(path) as source:
        for block in source.blocks():
            assert block.data.dtype.kind == "f"


def stored(path: Path, out: Path, **how: Any) -> None:
    import scfm

    shutil.rmtree(out, ignore_errors=True)
    scfm.tl.embed_store(path, out=out, shard_rows=100, **how)


@contextmanager
def unchecked() -> Iterator[None]:
    """Read whatever a file says."""
    with ExitStack() as stack:
        for name in CHECKS:
            stack.enter_context(patch(f"scfm.read.{name}", lambda *_: None))
        stack.enter_context(patch("scfm.read._door._entry", lambda group, path, *_, **__: (group[path], [])))
        stack.enter_context(patch("scfm.read.arrays.StoredArray.lacks", lambda *_: False))
        yield


@contextmanager
def unsynced() -> Iterator[None]:
    from scfm import settings

    settings.fsync = False
    try:
        yield
    finally:
        settings.fsync = True


def compare(
    what: str, call: Callable[[], Any], without: Callable[[], AbstractContextManager[None]], pairs: int
) -> None:
    times: dict[str, list[float]] = {}
    for pair in range(pairs + 1):
        for kind in ("with", "without") if pair % 2 else ("without", "with"):
            with without() if kind == "without" else nullcontext():
                started, used = perf_counter(), process_time()
                call()
                if pair:  # the first fills the page cache and compiles
                    times.setdefault(kind, []).append(perf_counter() - started)
                    times.setdefault(f"{kind}, used", []).append(process_time() - used)
    found = {kind: median(seconds) for kind, seconds in times.items()}
    ratio, used_ratio = found["with"] / found["without"], found["with, used"] / found["without, used"]
    print(f"| {what} | {found['with']:.3f} | {found['without']:.3f} | {ratio:.3f} | {used_ratio:.3f} |", flush=True)
