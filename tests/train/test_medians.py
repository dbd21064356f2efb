"""Medians of genes, exact and by sketches."""

from __future__ import annotations

import numpy as np
import pytest

from scfm.train.medians import GeneMedians


def values_of(n: int = 60_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    genes = rng.integers(0, 5, n) * 2
    weights = np.repeat([1.0, 2.5, 4.0], n // 3)
    return genes, rng.lognormal(genes + weights, 1.0), weights


def filled(medians: GeneMedians) -> GeneMedians:
    genes, values, weights = values_of()
    for start in range(0, len(genes), 7_000):
        for weight in np.unique(weights[start : start + 7_000]):
            part = np.flatnonzero(weights[start : start + 7_000] == weight) + start
            medians.add(genes[part], values[part], weight)
    return medians


def test_medians_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    genes, values = rng.integers(0, 40, 999), rng.gamma(2.0, size=999)
    medians = GeneMedians(41)
    for part in np.array_split(np.arange(999), 7):
        medians.add(genes[part], values[part])
    expected = [np.median(values[genes == gene].astype(np.float32)) for gene in range(40)]
    np.testing.assert_allclose(medians.result()[:40], expected, rtol=1e-7)
    assert np.isnan(medians.result()[40])
    assert medians.is_exact
    assert np.isnan(GeneMedians(3).result()).all()


def test_a_weight_is_a_number_of_copies() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.normal(size=31), rng.integers(1, 5, 31)
    medians = GeneMedians(1)
    for value, weight in zip(values, weights, strict=True):
        medians.add(np.zeros(1, int), np.array([value]), float(weight))
    assert medians.result()[0] == pytest.approx(np.median(np.repeat(values, weights)), rel=1e-6)
    even = GeneMedians(1)
    even.add(np.zeros(1, int), np.array([1.0]), 2)
    even.add(np.zeros(2, int), np.array([2.0, 3.0]))
    assert even.result()[0] == 1.5  # the mean of the values on both sides of the middle


def test_sketches_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank of what they give is within their error, and weights count."""
    monkeypatch.setattr("scfm.train.medians.FLUSH", 9_000)
    exact, sketched = filled(GeneMedians(9)), filled(GeneMedians(9, exact_values=20_000))
    assert exact.is_exact
    assert not sketched.is_exact
    genes, values, weights = values_of()
    for gene in range(0, 9, 2):
        own = genes == gene
        rank = weights[own & (values <= sketched.result()[gene])].sum() / weights[own].sum()
        assert rank == pytest.approx(0.5, abs=0.01)
        unweighted = np.median(values[own])
        assert (
            abs(sketched.result()[gene] / exact.result()[gene] - 1) < 0.05 < abs(unweighted / exact.result()[gene] - 1)
        )
    assert np.isnan(sketched.result()[1::2]).all()
    np.testing.assert_array_equal(sketched.result(), sketched.result())
