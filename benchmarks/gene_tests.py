"""Rank tests of many genes: ours against one call of scipy a gene.

Effects are drawn at random, every cell has every gene. scipy is timed on some genes, drawn at random, and scaled to all; the
ranks within cells that the paired test starts with do not count there. A rank-sum test of one gene ranks the values of all.
"""

from __future__ import annotations

from statistics import median
from time import process_time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--genes", type=int, default=10_000)
    parser.add_argument("--cells", type=int, default=1_000)
    parser.add_argument("--timed", type=int, default=200, help="genes that scipy is timed on")
    parser.add_argument("--repeats", type=int, default=5)


def run(args: argparse.Namespace) -> None:
    import pandas as pd
    import scipy
    from scipy.stats import ranksums, wilcoxon

    from scfm.metrics.gene_tests import ranks_within
    from scfm.metrics.shift_tests import against_null, against_others, paired
    from scfm.metrics.shifts import Shifts

    rng = np.random.default_rng(0)
    shape = (args.cells, args.genes)
    cells, genes = (one.ravel() for one in np.indices(shape))
    values, other = (rng.standard_t(3, shape) * rng.gamma(2.0, 0.01, (args.cells, 1)) for _ in range(2))
    names = pd.RangeIndex(args.genes)
    shifts, null = (Shifts(cells, genes, one.ravel(), names) for one in (values, other))
    places = (2 * ranks_within(cells, shifts.values).reshape(shape) - 1 - args.genes) / (2 * args.genes)
    timed = rng.permutation(args.genes)[: args.timed]
    few = timed[: max(1, args.timed // 100)]  # a call takes seconds

    def others(gene: int) -> Any:
        return ranksums(values[:, gene], np.delete(values, gene, axis=1).ravel())

    tests: dict[str, tuple[Callable[[], Any], Callable[[int], Any], Any]] = {
        "paired": (lambda: paired(shifts, None), lambda gene: wilcoxon(places[:, gene]), timed),
        "ranksum": (lambda: against_others(shifts, upstream=False), others, few),
        "null": (
            lambda: against_null(shifts, null, by_gene=True),
            lambda gene: ranksums(values[:, gene], other[:, gene]),
            timed,
        ),
    }
    print(f"scipy {scipy.__version__}, {args.genes:,} genes, {args.cells:,} cells\n")
    print("Seconds of processor time, one thread\n")
    print("| test | scfm, s | scipy, s | ratio (lowest, highest of a turn) | largest difference of a p-value |")
    print("|---|---|---|---|---|")
    for name, (ours, theirs, chosen) in tests.items():
        pvals = ours()[1]
        difference = max(abs(theirs(gene).pvalue - pvals[gene]) for gene in chosen.tolist())
        turns = []
        for _ in range(args.repeats):
            began = process_time()
            ours()
            middle = process_time()
            for gene in chosen.tolist():
                theirs(gene)
            turns.append((middle - began, (process_time() - middle) * args.genes / len(chosen)))
        ratios = [their / our for our, their in turns]
        first, second = (median(column) for column in zip(*turns, strict=True))
        print(
            f"| `{name}` | {first:.2f} | {second:.1f} | {median(ratios):.1f} ({min(ratios):.1f}, {max(ratios):.1f}) | "
            f"{difference:.0e} |"
        )
