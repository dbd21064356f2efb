from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scfm.metrics.gene_tests import rank_sum, rank_sum_pairs, ranks_within, signed_rank


def entries(seed: int, sizes: list[int], *, tied: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    genes = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    values = rng.normal(0.2, 1, len(genes))
    return genes, np.round(values, 1) if tied else values


SIZES = [0, 1, 2, 5, 13, 14, 49, 50, 51, 60, 200]


def test_ranks_share_ties_within_their_group() -> None:
    ranks = ranks_within(np.array([1, 0, 1, 1, 0]), np.array([3.0, 3.0, 1.0, 3.0, 9.0]))
    np.testing.assert_array_equal(ranks, [2.5, 1, 1, 2.5, 2])


@pytest.mark.parametrize("seed", range(5))
def test_ranks_equal_scipy_whatever_the_values(seed: int) -> None:
    """Signs, zeros of both signs, ties, infinities, and values that float32 does not tell apart."""
    rng = np.random.default_rng(seed)
    values = rng.choice([-np.inf, -1, -0.0, 0.0, 1e-40, -1e-40, 1, 1e300, np.inf], 300)
    near = rng.random(300) < 0.7
    values[near] = 1 + rng.integers(-9, 9, near.sum()) * 1e-12
    groups = rng.integers(0, 3, 300)
    ranks = ranks_within(groups, values)
    for group in range(3):
        np.testing.assert_array_equal(ranks[groups == group], stats.rankdata(values[groups == group]))


@pytest.mark.parametrize("tied", [False, True])
def test_signed_rank_equals_scipy(tied: bool) -> None:
    genes, values = entries(0, SIZES, tied=tied)
    statistic, pvals = signed_rank(genes, values, len(SIZES))
    assert np.isnan([statistic[0], pvals[0]]).all()
    for gene, size in enumerate(SIZES):
        if size:
            wanted = stats.wilcoxon(values[genes == gene])
            np.testing.assert_allclose(statistic[gene], wanted.statistic, rtol=1e-12)
            np.testing.assert_allclose(pvals[gene], wanted.pvalue, rtol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_rank_sum_equals_scipy(tied: bool) -> None:
    genes, values = entries(1, SIZES[1:], tied=tied)
    statistic, pvals = rank_sum(genes, values, len(SIZES) - 1)
    for gene in range(len(SIZES) - 1):
        wanted = stats.ranksums(values[genes == gene], values[genes != gene])
        np.testing.assert_allclose([statistic[gene], pvals[gene]], [wanted.statistic, wanted.pvalue], rtol=1e-12)


def test_rank_sum_of_two_sets_equals_scipy() -> None:
    genes, values = entries(2, SIZES, tied=True)
    of_test = np.random.default_rng(3).random(len(values)) < 0.4
    of_test[genes == 1] = True
    statistic, pvals = rank_sum_pairs(genes, values, of_test, len(SIZES))
    assert np.isnan(pvals[:2]).all()
    for gene in range(3, len(SIZES)):
        own = genes == gene
        wanted = stats.ranksums(values[own & of_test], values[own & ~of_test])
        np.testing.assert_allclose([statistic[gene], pvals[gene]], [wanted.statistic, wanted.pvalue], rtol=1e-12)
