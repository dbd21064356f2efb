"""Rank value encoding on one core against a stable numpy argsort per cell: ``python -m benchmarks rank``."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import numpy as np

from scfm._types import CountBlock
from scfm.encode import RankEncoder

if TYPE_CHECKING:
    from collections.abc import Callable

N_CELLS = 2_000
VOCABULARY = 20_000
MAX_TOKENS = 2_048
REPEATS = 9
LIMIT = 4.0


def counts(genes_per_cell: int, seed: int = 0) -> CountBlock:
    """Cells with the same number of genes each and geometric counts."""
    rng = np.random.default_rng(seed)
    columns = [np.sort(rng.choice(VOCABULARY, genes_per_cell, replace=False)) for _ in range(N_CELLS)]
    data = rng.geometric(0.4, N_CELLS * genes_per_cell).astype(np.float32)
    indptr = np.arange(N_CELLS + 1, dtype=np.int64) * genes_per_cell
    return CountBlock(0, indptr, np.concatenate(columns).astype(np.int32), data, np.ones(N_CELLS))


def by_argsort(block: CountBlock, tokens: np.ndarray, factors: np.ndarray) -> list[np.ndarray]:
    """The peer: normalise and sort one cell at a time."""
    cells = []
    for start, stop in zip(block.indptr[:-1], block.indptr[1:], strict=True):
        present = tokens[block.indices[start:stop]]
        values = block.data[start:stop] * factors[present]
        cells.append(present[np.argsort(-values, kind="stable")][:MAX_TOKENS])
    return cells


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(genes_per_cell: int) -> str:
    rng = np.random.default_rng(1)
    medians = np.concatenate([[np.nan] * 2, rng.lognormal(0.5, 0.8, VOCABULARY)])
    tokens, factors = np.arange(2, VOCABULARY + 2, dtype=np.int32), 1.0 / medians
    block = counts(genes_per_cell)
    encoder = RankEncoder(tokens, medians, MAX_TOKENS, threads=1)
    found = encoder(block)  # compiles, too
    np.testing.assert_array_equal(found.tokens, np.concatenate(by_argsort(block, tokens, factors)))
    pairs = [(timed(lambda: encoder(block)), timed(lambda: by_argsort(block, tokens, factors))) for _ in range(REPEATS)]
    ours, peer = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    return f"| {genes_per_cell:,} | {N_CELLS / ours:,.0f} | {N_CELLS / peer:,.0f} | {ratio:.1f}× | {LIMIT:.0f}× |"


def main() -> None:
    print("| genes a cell | scfm, cells/s on one core | numpy argsort, cells/s | ratio | wanted |")
    print("|---|---|---|---|---|")
    for genes_per_cell in (1_500, 2_500):
        print(compare(genes_per_cell), flush=True)


if __name__ == "__main__":
    main()
