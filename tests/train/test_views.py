"""Views of cells: thinned counts and panels of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from scfm.train.views import Views, random_panels

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_GENES = 400
GENES = np.random.default_rng(5).permutation(N_GENES)[:300].astype(np.int32)
COUNTS = np.full(300, 6, np.float32)


def draws(n: int = 400, genes: NDArray[np.int32] = GENES, **options: Any) -> NDArray[np.float32]:
    """Many views of one cell, as counts by gene."""
    views, rng = Views(N_GENES, **options), np.random.default_rng(0)
    seen = np.zeros((n, N_GENES), np.float32)
    for row in seen:
        kept, counts = views(genes, COUNTS[: len(genes)], rng)
        assert counts.dtype == COUNTS.dtype
        assert counts.min() > 0
        row[kept] = counts
    assert (COUNTS == 6).all()
    return seen


def test_counts_are_binomial() -> None:
    share = draws(thinned=1, least_depth=0.1, cut=0)[:, GENES] / 6
    depth = share.mean(axis=1)
    assert 0.08 < depth.min() < 0.13 < 0.9 < depth.max() <= 1
    assert np.median(depth) == pytest.approx(0.1**0.5, rel=0.15)  # the middle on a log scale
    assert (share.var(axis=1) * 6).mean() == pytest.approx((depth * (1 - depth)).mean(), rel=0.05)


def test_panels_are_random_and_their_size_log_uniform() -> None:
    seen = draws(2000, thinned=0, cut=1, least_genes=25, least_expressed=1)
    assert set(np.unique(seen)) == {0, 6}
    sizes = (seen > 0).sum(axis=1) * N_GENES / len(GENES)
    assert 15 < sizes.min() < 25 < 380 < sizes.max() <= 400
    assert np.median(sizes) == pytest.approx(100, rel=0.1)
    inside = (seen[:, GENES] > 0).mean(axis=0)
    assert inside.std() < 1.5 * np.sqrt(inside.mean() * (1 - inside.mean()) / 2000)


def test_small_panels_hold_as_many_genes_of_the_cell_as_by_chance() -> None:
    """As if the panel itself had been drawn."""
    rng = np.random.default_rng(0)
    kept = (draws(2000, thinned=0, cut=1, least_genes=399, least_expressed=1) > 0).sum(axis=1)
    drawn = [np.isin(GENES, rng.choice(N_GENES, rng.integers(399, 401), replace=False)).sum() for _ in range(2000)]
    assert np.mean(kept) == pytest.approx(np.mean(drawn), abs=0.05)


def test_shares_of_cells_that_change() -> None:
    """Some cells are cut, some thinned, some both and some neither."""
    seen = draws(thinned=0.5, least_depth=0.1, cut=0.5, least_genes=30)[:, GENES]
    untouched = (seen == 6).all(axis=1)
    only_cut = ((seen == 6) | (seen == 0)).all(axis=1)
    assert untouched.mean() == pytest.approx(0.25, abs=0.07)
    assert only_cut.mean() == pytest.approx(0.5, abs=0.1)


def test_given_panels() -> None:
    panels = np.zeros((2, N_GENES), bool)
    panels[0, :100], panels[1, 150:] = True, True
    seen = draws(thinned=0, cut=0, shared=1, panels=panels) > 0
    expressed = np.isin(np.arange(N_GENES), GENES)
    first, second = ((seen == expressed & panel).all(axis=1) for panel in panels)
    assert (first | second).all()
    assert first.mean() == pytest.approx(0.5, abs=0.1)
    within = draws(thinned=0, cut=1, shared=1, least_genes=50, panels=panels[:1], least_expressed=1) > 0
    assert not within[:, 100:].any()
    assert 50 * 0.5 < within.sum(axis=1).min() < within.sum(axis=1).max() <= (expressed & panels[0]).sum()


def test_poor_views_are_not_taken() -> None:
    few = GENES[:30]
    seen = draws(genes=few, thinned=1, least_depth=0.1, cut=1, least_genes=40, least_expressed=25)
    n = (seen > 0).sum(axis=1)
    assert n.min() >= 25
    assert (seen[n == 30][:, few] == 6).all(axis=1).mean() > 0.9  # counts and genes of the cell, not of the view
    none = Views(N_GENES)(GENES[:0], COUNTS[:0], np.random.default_rng(0))
    assert [len(part) for part in none] == [0, 0]


def test_the_generator_decides_alone() -> None:
    views = Views(N_GENES, least_genes=50)
    one, again, other = (views(GENES, COUNTS, np.random.default_rng(seed)) for seed in (3, 3, 4))
    for part, same in zip(one, again, strict=True):
        np.testing.assert_array_equal(part, same)
    assert not np.array_equal(one[0], other[0])


def test_panels_to_share() -> None:
    panels = random_panels(500, N_GENES, 25, np.random.default_rng(0))
    sizes = panels.sum(axis=1)
    assert 25 <= sizes.min() < 30 < 350 < sizes.max() <= N_GENES
    assert np.median(sizes) == pytest.approx(100, rel=0.15)
    assert random_panels(2, 10, 25, np.random.default_rng(0)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thinned": 1.5}, "thinned=1.5 is a share of the cells"),
        ({"shared": -0.1}, "shared=-0.1 is a share of the cells"),
        ({"least_depth": 0.0}, "least_depth=0.0 is the smallest share of the molecules"),
        ({"least_genes": 0}, "least_genes"),
        ({"panels": np.ones((2, 3), bool)}, r"panels have shape \(2, 3\); need \(n_panels, 400\)"),
    ],
)
def test_arguments_out_of_bounds(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Views(N_GENES, **arguments)
