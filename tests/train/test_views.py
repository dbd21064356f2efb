"""Views of cells: thinned counts and panels of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import sparse

from scfm._types import CountBlock
from scfm.train.views import Views, random_panels

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_COLUMNS = 400
GENES = np.arange(N_COLUMNS) + 3
GENES[::10] = -1


def block_of(counts: NDArray[np.generic]) -> CountBlock:
    matrix = sparse.csr_matrix(counts)
    totals = np.asarray(counts, np.float64).sum(axis=1)
    return CountBlock(7, matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data, totals)


def dense(block: CountBlock) -> NDArray[np.float64]:
    shape = block.n_cells, N_COLUMNS
    return sparse.csr_matrix((block.data, block.indices, block.indptr), shape=shape).toarray().astype(np.float64)


@pytest.fixture(scope="module")
def counts() -> NDArray[np.float32]:
    return np.random.default_rng(0).poisson(2.0, (300, N_COLUMNS)).astype(np.float32)


def plain(counts: NDArray[np.generic]) -> NDArray[np.generic]:
    """What is left without any change: the columns that have a token."""
    return counts * (GENES >= 0)


def test_thinned_counts_are_binomial(counts: NDArray[np.float32]) -> None:
    block = block_of(counts)
    view = Views(thinned=1, least_depth=0.1, cut=0)(block, GENES, np.random.default_rng(1))
    got, before = dense(view), plain(counts)
    assert (got <= before).all()
    assert (view.row0, view.data.dtype, view.data.min()) == (7, counts.dtype, 1)
    np.testing.assert_array_equal(view.totals, got.sum(axis=1))
    depth = got.sum(axis=1) / before.sum(axis=1)
    assert 0.08 < depth.min() < 0.12 < 0.9 < depth.max() <= 1
    assert np.median(depth) == pytest.approx(0.1**0.5, rel=0.15)  # the middle on a log scale
    given = dense(
        Views(thinned=1, least_depth=0.1, cut=0)(
            block_of(np.full((300, N_COLUMNS), 6)), GENES, np.random.default_rng(1)
        )
    )
    share = given[:, GENES >= 0] / 6
    assert share.var(axis=1) == pytest.approx(share.mean(axis=1) * (1 - share.mean(axis=1)) / 6, rel=0.35)


def test_only_counts_are_thinned() -> None:
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="Only counts can be thinned; .* Name the layer with counts"):
            Views()(block_of(np.array([[1.0, bad]])), np.array([0, 1]), np.random.default_rng(0))


def test_panels_are_random_and_their_size_log_uniform() -> None:
    candidates = np.zeros((2000, 500), bool)
    candidates[:, 20:420] = True
    panels = random_panels(candidates, 25, np.random.default_rng(0))
    assert not panels[:, :20].any()
    assert not panels[:, 420:].any()
    sizes = panels.sum(axis=1)
    assert 25 <= sizes.min() < 30 < 350 < sizes.max() <= 400
    assert np.median(sizes) == pytest.approx(100, rel=0.1)  # the middle of 25 to 400 on a log scale
    inside = panels[:, 20:420].mean(axis=0)
    assert inside.std() < 1.5 * np.sqrt(inside.mean() * (1 - inside.mean()) / 2000)
    few = np.zeros((1, 500), bool)
    few[0, :10] = True
    np.testing.assert_array_equal(random_panels(few, 25, np.random.default_rng(0)), few)


def test_a_view_depends_on_the_generator_alone(counts: NDArray[np.float32]) -> None:
    views, block = Views(least_genes=50), block_of(counts)
    one, again, other = (views(block, GENES, np.random.default_rng(seed)) for seed in (3, 3, 4))
    for name in ("indptr", "indices", "data", "totals"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
    assert not np.array_equal(one.indptr, other.indptr)
    np.testing.assert_array_equal(dense(block), counts)  # the block itself stays


def test_shares_of_cells_that_change(counts: NDArray[np.float32]) -> None:
    """Some cells are cut, some thinned, some both and some neither."""
    block = block_of(counts)
    got = dense(Views(thinned=0.5, least_depth=0.1, cut=0.5, least_genes=30)(block, GENES, np.random.default_rng(0)))
    before = plain(counts)
    same = (got == before).all(axis=1)
    assert same.mean() == pytest.approx(0.25, abs=0.08)
    only_cut = ((got == before) | (got == 0)).all(axis=1)
    assert only_cut.mean() == pytest.approx(0.5, abs=0.1)
    off = Views(thinned=0, cut=0)(block, GENES, np.random.default_rng(0))
    np.testing.assert_array_equal(dense(off), before)


def test_cells_share_a_panel(counts: NDArray[np.float32]) -> None:
    views = Views(thinned=0, cut=1, least_genes=60, cells_per_panel=50)
    got = dense(views(block_of(counts), GENES, np.random.default_rng(0)))
    seen = (got.reshape(6, 50, -1) > 0).any(axis=1)
    np.testing.assert_array_equal(got, plain(counts) * np.repeat(seen, 50, axis=0))
    assert len(np.unique(seen, axis=0)) == 6


def test_views_without_a_gene_in_common(counts: NDArray[np.float32]) -> None:
    views, block = Views(thinned=0, cut=0, disjoint=1, cells_per_panel=150), block_of(counts)
    one, other = (
        dense(views(block, GENES, np.random.default_rng(view), half=(view, np.random.default_rng(9))))
        for view in (0, 1)
    )
    np.testing.assert_array_equal(one + other, plain(counts))
    seen = (one.reshape(2, 150, -1) > 0).any(axis=1)
    assert not ((one.reshape(2, 150, -1) > 0) & (other.reshape(2, 150, -1) > 0).any(axis=1, keepdims=True)).any()
    assert ((seen.mean(axis=1) > 0.2) & (seen.mean(axis=1) < 0.75)).all()
    assert (seen[0] != seen[1]).any()


def test_cells_of_a_panel_share_efficiencies() -> None:
    block = block_of(np.full((400, N_COLUMNS), 100))
    got = dense(Views(thinned=0, cut=0, efficiency=1, cells_per_panel=200)(block, GENES, np.random.default_rng(1)))[
        :, GENES >= 0
    ].reshape(2, 200, -1)
    by_gene = got.mean(axis=1) / 100
    assert (by_gene == 1).mean() == pytest.approx(0.5, abs=0.1)  # none is counted more often than it was
    assert by_gene.min() < 0.7
    assert np.abs(got[:, :100].mean(axis=1) - got[:, 100:].mean(axis=1)).max() < 4  # of which the noise is 0.7
    assert np.abs(by_gene[0] - by_gene[1]).max() > 0.2


def test_panels_of_other_sources(counts: NDArray[np.float32]) -> None:
    panels = np.zeros((2, 303), bool)  # fewer tokens than the model has: none of the others was measured there
    panels[0, :100], panels[1, 150:] = True, True
    got = dense(Views(thinned=0, cut=0, foreign=1)(block_of(counts), GENES, np.random.default_rng(0), panels)) > 0
    expressed = (counts > 0) & (GENES >= 0)
    tokens = np.maximum(GENES, 0)
    of = [expressed & np.append(panel, np.zeros(100, bool))[tokens] for panel in panels]
    first, second = ((got == wanted).all(axis=1) for wanted in of)
    assert (first | second).all()
    assert first.mean() == pytest.approx(0.5, abs=0.1)


def test_poor_views_are_not_taken() -> None:
    """Cells that would lose nearly everything stay as they are, beside others that change."""
    counts = np.zeros((4, N_COLUMNS), np.int64)
    counts[[0, 2], 1:9] = 1  # too few genes for any view
    counts[[1, 3]] = 5
    view = Views(thinned=1, least_depth=0.5, cut=1, least_genes=100)(block_of(counts), GENES, np.random.default_rng(0))
    got = dense(view)
    np.testing.assert_array_equal(got[[0, 2]], counts[[0, 2]])
    assert (got[[1, 3]].sum(axis=1) < counts[[1, 3]].sum(axis=1)).all()
    np.testing.assert_array_equal(view.totals, got.sum(axis=1))


def test_panels_that_are_missing(counts: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"foreign=0.5 cuts cells to the genes of other sources, which panels="):
        Views(foreign=0.5)(block_of(counts), GENES, np.random.default_rng(0))


def test_no_cells() -> None:
    view = Views()(block_of(np.zeros((0, N_COLUMNS))), GENES, np.random.default_rng(0))
    assert view.n_cells == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thinned": 1.5}, "thinned must be between 0 and 1, got 1.5"),
        ({"foreign": -0.1}, "foreign must be between 0 and 1"),
        ({"least_depth": 0.0}, "least_depth must be above 0 and at most 1"),
        ({"disjoint": 2.0}, "disjoint must be between 0 and 1, got 2.0"),
        ({"efficiency": -1.0}, "efficiency must not be negative, got -1.0"),
        ({"least_genes": 0}, "least_genes"),
    ],
)
def test_arguments_out_of_bounds(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Views(**arguments)
