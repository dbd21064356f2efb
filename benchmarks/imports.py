"""Time of ``import scfm`` beside that of the two libraries it extends: ``python -m benchmarks imports``."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

CODE = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def seconds(modules: str) -> float:
    """Seconds that the imports take in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", CODE.format(modules)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--limit", type=float, default=1.2, help="ratio of the medians that is wanted")


def run(args: argparse.Namespace) -> None:
    names = ("anndata, mudata", "scfm")
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(args.runs + 1):
        for name in names:  # alternating, so that a slow spell of the machine hits both
            elapsed = seconds(name)
            if turn:  # the first round warms the file cache and writes bytecode
                times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"import {name:16} median {medians[name]:.3f} s, range {min(values):.3f}-{max(values):.3f} s")
    ratio = medians["scfm"] / medians["anndata, mudata"]
    print(f"ratio {ratio:.2f}, limit {args.limit:.2f}")
