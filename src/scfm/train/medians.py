"""Median of each gene over more values than fit into memory."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from datasketches import kll_floats_sketch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["GeneMedians"]

K = 400
"""Size of the sketch of a gene: a rank error of 0.7 % at most, in 99 of 100 cases."""
FLUSH = 10_000_000
"""Values that are gathered before sketches take them."""
PORTIONS = 16
"""Parts into which genes are divided to be sorted."""


class GeneMedians:
    """Weighted median of the values of each gene.

    As long as there are no more than ``exact_values`` all are kept, and medians are exact (in float32). From then on the
    values of a gene go into a sketch of quantiles (KLL, Karnin et al. 2016, arXiv:1603.05346, package ``datasketches``),
    whose rank error is 0.7 %: what it gives is between the quantiles 0.493 and 0.507, in 99 of 100 genes. A value of
    weight w is then taken ⌊w⌋ or ⌈w⌉ times at random, w times on average.

    Parameters
    ----------
    n_genes
        Number of genes.
    exact_values
        Values that are kept, 8 bytes each.
    seed
        Decides the rounding of weights.

    Examples
    --------
    >>> import numpy as np
    >>> medians = GeneMedians(2)
    >>> medians.add(np.array([0, 0, 1]), np.array([1.0, 2.0, 5.0]))
    >>> medians.add(np.array([0]), np.array([9.0]), weight=3)
    >>> medians.result()
    array([9., 5.])
    """

    def __init__(self, n_genes: int, exact_values: int = 50_000_000, seed: int = 0) -> None:
        self._n_genes, self._exact = n_genes, exact_values
        self._rng = np.random.default_rng(seed)
        self._parts: list[tuple[NDArray[np.int32], NDArray[np.float32], float]] = []
        self._size = 0
        self._sketches: dict[int, kll_floats_sketch] | None = None

    @property
    def is_exact(self) -> bool:
        """Whether all values are kept."""
        return self._sketches is None

    def add(self, genes: NDArray[np.integer], values: NDArray[np.floating[Any]], weight: float = 1.0) -> None:
        """Take values of genes.

        Parameters
        ----------
        genes
            Number of the gene of each value, shape ``(n,)``.
        values
            The values, shape ``(n,)``; rounded to float32.
        weight
            Weight of all of them, 1 or more.
        """
        self._parts.append((genes.astype(np.int32), values.astype(np.float32), weight))
        self._size += len(genes)
        if self._size > (self._exact if self._sketches is None else FLUSH):
            self._flush()

    def result(self) -> NDArray[np.float64]:
        """Median of each gene, NaN for one without values, shape ``(n_genes,)``; between two values, their mean."""
        medians = np.full(self._n_genes, np.nan)
        if self._sketches is None:
            for gene, values, weights in self._by_gene():
                medians[gene] = _weighted_median(values, weights)
            return medians
        self._flush()
        for gene, sketch in self._sketches.items():
            medians[gene] = sketch.get_quantile(0.5, inclusive=True)
        return medians

    def _flush(self) -> None:
        sketches = self._sketches = self._sketches or {}
        for gene, values, weights in self._by_gene():
            whole = np.floor(weights)
            copies = (whole + (self._rng.random(len(weights)) < weights - whole)).astype(int)
            if gene not in sketches:
                sketches[gene] = kll_floats_sketch(K)
            sketches[gene].update(np.repeat(values, copies))
        self._parts, self._size = [], 0

    def _by_gene(self) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
        """Gene, values and weights of the genes that have values; some genes at a time are sorted."""
        step = -(-self._n_genes // PORTIONS)
        for low in range(0, self._n_genes if self._parts else 0, step):
            here = [(genes >= low) & (genes < low + step) for genes, _, _ in self._parts]
            genes, values, weights = map(
                np.concatenate,
                zip(
                    *(
                        (genes[mask] - low, values[mask], np.full(np.count_nonzero(mask), weight, np.float32))
                        for mask, (genes, values, weight) in zip(here, self._parts, strict=True)
                    ),
                    strict=True,
                ),
            )
            order = np.argsort(genes, kind="stable")
            borders = np.searchsorted(genes[order], np.arange(step + 1)).tolist()
            for gene, (start, stop) in enumerate(pairwise(borders)):
                if stop > start:
                    part = order[start:stop]
                    yield low + gene, values[part], weights[part]


def _weighted_median(values: NDArray[np.float32], weights: NDArray[np.float32]) -> float:
    order = np.argsort(values)
    values, below = values[order].astype(np.float64), np.cumsum(weights[order], dtype=np.float64)
    half = below[-1] / 2
    first = int(np.searchsorted(below, half * (1 - 1e-12)))
    second = min(int(np.searchsorted(below, half * (1 + 1e-12), side="right")), len(values) - 1)
    return float(values[first] + values[second]) / 2
