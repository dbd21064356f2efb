"""Tests of the effects of perturbations: a row for each gene, in the order of :func:`summary`."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm.metrics.gene_tests import rank_sum, rank_sum_pairs, ranks_within, signed_rank

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scfm.metrics.shifts import Shifts

__all__ = [
    "against_null",
    "against_others",
    "against_random",
    "adjusted",
    "impact_of",
    "means_of",
    "paired",
    "summary",
]

NULL_VALUES = 100_000
"""Values to which upstream reduces the null of all genes."""


def summary(shifts: Shifts, donors: NDArray[np.int64] | None) -> pd.DataFrame:
    """Mean effect of each gene that has any, its standard deviation, and the numbers of its cells and their donors.

    Parameters
    ----------
    shifts
        Effects.
    donors
        Donor of each cell, −1 for none; ``n_donors`` is 0 without them.
    """
    genes, values = shifts.genes, shifts.values
    n = np.bincount(genes, minlength=len(shifts.names))
    seen, effect = n > 0, means_of(shifts)
    squares = means_of(shifts, (values - effect[genes]) ** 2)
    n_donors = np.zeros(len(n), np.int64)
    if donors is not None:
        pairs = np.unique(np.stack([genes, donors[shifts.cells]]), axis=1)
        n_donors = np.bincount(pairs[0, pairs[1] >= 0], minlength=len(n))
    columns = {
        "names": shifts.names.astype(str),
        "effect": effect,
        "sd": np.sqrt(squares),
        "n_cells": n,
        "n_donors": n_donors,
    }
    return pd.DataFrame(columns)[seen]


def means_of(shifts: Shifts, values: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Mean effect of each gene, or mean of other values of the same entries; NaN for a gene without any."""
    n = len(shifts.names)
    with np.errstate(invalid="ignore"):
        return np.bincount(shifts.genes, shifts.values if values is None else values, n) / np.bincount(
            shifts.genes, minlength=n
        )


def adjusted(pvals: NDArray[np.float64]) -> NDArray[np.float64]:
    """P-values adjusted by Benjamini–Hochberg; NaN stays."""
    from scipy.stats import false_discovery_control

    found = pvals.copy()
    valid = np.isfinite(pvals)
    found[valid] = false_discovery_control(pvals[valid])
    return found


def paired(shifts: Shifts, donors: NDArray[np.int64] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Signed-rank test, over cells, of the place of a gene among the genes of the cell: 0 in the middle, ½ for the largest.

    Effects within a cell are skewed, so that most genes lie below the mean of the others in every cell; places are symmetric
    where no gene differs from the others. With donors, the test is over the means of their cells. Cells with one gene
    have nothing to compare it with.
    """
    genes, cells, values = shifts.genes, shifts.cells, shifts.values
    n = np.bincount(cells)
    of_cell = n[cells]
    places = (2 * ranks_within(cells, values) - 1 - of_cell) / (2 * of_cell)  # exactly as far above the middle as below
    if (n == 1).any():
        kept = n[cells] > 1
        genes, cells, places = genes[kept], cells[kept], places[kept]
    if donors is None:
        return signed_rank(genes, places, len(shifts.names))
    kept = donors[cells] >= 0
    means = pd.Series(places[kept]).groupby([genes[kept], donors[cells[kept]]]).mean()
    genes = means.index.get_level_values(0).to_numpy(np.int64)
    return signed_rank(genes, np.asarray(means, np.float64), len(shifts.names))


def against_others(shifts: Shifts, *, upstream: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rank-sum test of the effects of a gene against those of all others; as upstream, against a sample of all."""
    if not upstream:
        return rank_sum(shifts.genes, shifts.values, len(shifts.names))
    null = shifts.values
    if len(null) > NULL_VALUES:
        null = np.asarray(random.Random(42).sample(null.tolist(), NULL_VALUES))
    return _against(shifts, null)


def against_null(shifts: Shifts, null: Shifts, *, by_gene: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rank-sum test of the effects of a gene against its own in another run, or against those of chosen genes."""
    if not by_gene:
        return _against(shifts, null.values)
    at = shifts.names.get_indexer(null.names)[null.genes]
    genes, values = np.append(shifts.genes, at[at >= 0]), np.append(shifts.values, null.values[at >= 0])
    statistic, pvals = rank_sum_pairs(genes, values, np.arange(len(genes)) < len(shifts.genes), len(shifts.names))
    return statistic, np.where(np.isnan(pvals), 1.0, pvals)  # a gene that the null lacks


def _against(shifts: Shifts, null: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from scipy.stats import ranksums

    found = np.full((len(shifts.names), 2), np.nan)
    for gene in np.unique(shifts.genes).tolist():
        found[gene] = ranksums(shifts.values[shifts.genes == gene], null)
    return found[:, 0], found[:, 1]


def against_random(
    effect: NDArray[np.float64], random_shifts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Whether the mean shift of a gene towards the goal is one of those towards random states, two-sided.

    The latter are means over many cells, so close to normal: the statistic is how many of their standard deviations the
    shift is away from their mean, and has Student's distribution.

    Parameters
    ----------
    effect
        Mean shift of each gene, shape ``(n_names,)``.
    random_shifts
        Those towards random states, shape ``(n_names, n_states)``.
    """
    from scipy.special import stdtr

    n = random_shifts.shape[1]
    spread = random_shifts.std(axis=1, ddof=1) * np.sqrt(1 + 1 / n)
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = (effect - random_shifts.mean(axis=1)) / spread
    return statistic, 2 * stdtr(n - 1, -np.abs(statistic))


def impact_of(effect: NDArray[np.float64], *, upstream: bool) -> Callable[[NDArray[np.float64]], NDArray[np.bool_]]:
    """Fit two normal distributions to mean effects; whether effects belong to the one with the larger mean.

    Parameters
    ----------
    effect
        Mean effect of each gene.
    upstream
        Take the first of the two for the one with the larger mean, whichever it is, and fit to the effects in the order in
        which they are given, on which the fit depends.

    Raises
    ------
    ValueError
        If there are fewer than two genes.
    """
    from sklearn.mixture import GaussianMixture

    effect = effect[np.isfinite(effect)]
    if len(effect) < 2:
        msg = f"test='mixture' fits two distributions to the effects of genes, of which there {'is 1' if len(effect) else 'are none'}."
        raise ValueError(msg)
    model = GaussianMixture(n_components=2, random_state=0).fit(1 - (effect if upstream else np.sort(effect))[:, None])
    means = model.means_[:, 0]
    large = 0 if upstream else int(np.argmin(means))  # of cosines

    def has_impact(effects: NDArray[np.float64]) -> NDArray[np.bool_]:
        cosines = 1 - effects
        predicted = model.predict(cosines[:, None]) == large
        return np.where(cosines > means[1 - large], False, np.where(cosines < means[large], True, predicted))

    return has_impact
