"""Rank tests of many genes at once, over values that each gene has in some cells only."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ranks_within", "rank_sum", "rank_sum_pairs", "signed_rank"]

EXACT_UP_TO, EXACT_TIED_UP_TO = 50, 13
"""Values of a gene for which the distribution of the signed-rank statistic is exact, without and with ties or zeros, as in scipy."""


def ranks_within(groups: NDArray[np.int64], values: NDArray[Any]) -> NDArray[np.float64]:
    """Rank of each value among those of its group, from 1; equal values share their mean rank.

    Parameters
    ----------
    groups, values
        Group and value of each entry, shape ``(n,)``.
    """
    from scfm.metrics.rank_kernels import ranks_of_groups

    found = np.empty(len(groups))
    if (groups[1:] >= groups[:-1]).all():
        ranks_of_groups(np.asarray(values, np.float64), _starts(groups, 0), found)
        return found
    starts, order = _by_group(groups, np.arange(len(groups)), 0)
    ranks_of_groups(np.asarray(values, np.float64)[order], starts, found)
    ranks = np.empty_like(found)
    ranks[order] = found
    return ranks


def signed_rank(
    genes: NDArray[np.int64], values: NDArray[np.float64], n_genes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilcoxon's signed-rank test that the values of each gene are symmetric about 0, two-sided.

    As :func:`scipy.stats.wilcoxon` with its defaults: zeros are left out; exact for up to 50 values without zeros and ties and
    for up to 13 with them, else the normal approximation with the correction for ties.

    Parameters
    ----------
    genes, values
        Gene and value of each entry, shape ``(n,)``.
    n_genes
        Number of genes.

    Returns
    -------
    Statistic (the smaller rank sum) and p-value of each gene, shape ``(n_genes,)``; NaN without values.
    """
    from scipy.stats import rankdata

    from scfm.metrics.rank_kernels import signed_rank_sums

    starts, own = _by_group(genes, values, n_genes)
    n = np.zeros(n_genes, np.int64)
    plus, minus, tied = np.zeros((3, n_genes))
    signed_rank_sums(own, starts, n, plus, minus, tied)
    n_zeros = np.diff(starts) - n
    error = np.sqrt((n * (n + 1.0) * (2 * n + 1) - tied / 2) / 24)
    with np.errstate(invalid="ignore", divide="ignore"):
        pvals = _two_sided((plus - n * (n + 1) / 4) / error)
    statistic = np.where(n > 0, np.minimum(plus, minus), np.nan)
    even = (n_zeros == 0) & (tied == 0)
    for gene in np.flatnonzero((n > 0) & even & (n <= EXACT_UP_TO)).tolist():
        pvals[gene] = _exact(tuple(range(1, n[gene] + 1)))[int(statistic[gene])]
    for gene in np.flatnonzero((n > 0) & ~even & (n + n_zeros <= EXACT_TIED_UP_TO)).tolist():
        few = own[starts[gene] : starts[gene + 1]]
        doubled = np.sort(2 * rankdata(np.abs(few[few != 0]))).astype(np.int64)
        pvals[gene] = _exact(tuple(doubled.tolist()))[int(2 * statistic[gene])]
    pvals[n == 0] = np.nan
    return statistic, pvals


def rank_sum(
    genes: NDArray[np.int64], values: NDArray[np.float64], n_genes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rank-sum test of the values of each gene against those of all other genes, two-sided.

    As :func:`scipy.stats.ranksums`: normal approximation without correction for ties.

    Parameters
    ----------
    genes, values, n_genes
        As for :func:`signed_rank`.

    Returns
    -------
    Statistic (standardised, positive where the gene is higher) and p-value of each gene, shape ``(n_genes,)``.
    """
    ranks = ranks_within(np.zeros_like(genes), values)
    n = np.bincount(genes, minlength=n_genes)
    return _standardised(np.bincount(genes, ranks, n_genes), n, len(values) - n)


def rank_sum_pairs(
    genes: NDArray[np.int64], values: NDArray[np.float64], of_test: NDArray[np.bool_], n_genes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rank-sum test of the values of each gene in one set against its values in another one, two-sided.

    Parameters
    ----------
    genes, values, n_genes
        As for :func:`signed_rank`, of both sets.
    of_test
        Whether a value is of the first set, shape ``(n,)``.

    Returns
    -------
    As :func:`rank_sum`; NaN for a gene that one of the sets lacks.
    """
    ranks = ranks_within(genes, values)
    n = np.bincount(genes[of_test], minlength=n_genes)
    sums = np.bincount(genes[of_test], ranks[of_test], n_genes)
    return _standardised(sums, n, np.bincount(genes, minlength=n_genes) - n)


def _starts(groups: NDArray[np.int64], n_groups: int) -> NDArray[np.int64]:
    return np.append(0, np.cumsum(np.bincount(groups, minlength=n_groups)))


def _by_group(groups: NDArray[np.int64], values: NDArray[Any], n_groups: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Start of each group, and the values sorted by group."""
    from scfm.metrics.rank_kernels import put_by_group

    starts, own = _starts(groups, n_groups), np.empty_like(values)
    put_by_group(groups, values, starts[:-1].copy(), own)
    return starts, own


def _standardised(
    sums: NDArray[Any], n: NDArray[np.int64], others: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (sums - n * (n + others + 1) / 2) / np.sqrt(n * others * (n + others + 1.0) / 12)
    return z, _two_sided(z)


def _two_sided(z: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import ndtr

    return 2 * ndtr(-np.abs(z))


@cache
def _exact(ranks: tuple[int, ...]) -> NDArray[np.float64]:
    """Two-sided p-value for each smaller sum of those of the ranks that have one sign."""
    ways = np.zeros(sum(ranks) + 1)
    ways[0] = 1
    for rank in ranks:
        ways[rank:] += ways[:-rank].copy()
    return np.minimum(2 * np.cumsum(ways / 2.0 ** len(ranks)), 1)
