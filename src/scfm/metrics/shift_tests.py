"""Tests of the effects of perturbations: a row for each gene, in the order of :func:`summary`."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm.metrics.gene_tests import rank_sum, rank_sum_pairs, ranks_within, signed_rank

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm.metrics.shifts import Shifts

__all__ = ["against_null", "against_others", "mixture", "paired", "summary"]

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
    seen = n > 0
    with np.errstate(invalid="ignore"):
        effect = np.bincount(genes, values, len(n)) / n
        squares = np.bincount(genes, (values - effect[genes]) ** 2, len(n)) / n
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


def paired(shifts: Shifts, donors: NDArray[np.int64] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Signed-rank test, over cells, of the place of a gene among the genes of the cell: 0 in the middle, ½ for the largest.

    Effects within a cell are skewed, so that most genes lie below the mean of the others in every cell; places are symmetric
    where no gene differs from the others. With donors, the test is over the means of their cells. Cells with one gene
    have nothing to compare it with.
    """
    genes, cells, values = shifts.genes, shifts.cells, shifts.values
    n = np.bincount(cells)
    places = (ranks_within(cells, values)[0] - 0.5) / n[cells] - 0.5
    kept = n[cells] > 1
    if donors is None:
        return signed_rank(genes[kept], places[kept], len(shifts.names))
    kept &= donors[cells] >= 0
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


def mixture(
    shifts: Shifts, effect: NDArray[np.float64], *, upstream: bool
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether the mean effect of a gene belongs to the component with the larger effects, and the share of its cells.

    Parameters
    ----------
    shifts
        Effects.
    effect
        Mean effect of each gene, NaN for none, shape ``(n_names,)``.
    upstream
        Take the first of two components for the one with larger effects, whichever it is.

    Raises
    ------
    ValueError
        If there are fewer than two genes.
    """
    from sklearn.mixture import GaussianMixture

    n_genes = int(np.isfinite(effect).sum())
    if n_genes < 2:
        msg = f"test='mixture' fits two distributions to the effects of genes, of which there {'is 1' if n_genes else 'are none'}."
        raise ValueError(msg)
    model = GaussianMixture(n_components=2, random_state=0).fit(1 - effect[np.isfinite(effect)][:, None])
    means = model.means_[:, 0]
    large = 0 if upstream else int(np.argmin(means))  # of cosines

    def is_large(effects: NDArray[np.float64]) -> NDArray[np.bool_]:
        cosines = 1 - effects
        predicted = model.predict(cosines[:, None]) == large
        return np.where(cosines > means[1 - large], False, np.where(cosines < means[large], True, predicted))

    n = np.bincount(shifts.genes, minlength=len(effect))
    hits = np.bincount(shifts.genes, is_large(shifts.values), len(effect))
    with np.errstate(invalid="ignore"):
        return is_large(np.nan_to_num(effect)) & (n > 0), hits / n
