from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import scfm

if TYPE_CHECKING:
    import anndata as ad


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    return scfm.datasets.pbmc68k()


def test_counts_are_whole(adata: ad.AnnData) -> None:
    assert (adata.shape, adata.X.format, adata.X.dtype) == ((700, 765), "csr", np.float32)
    assert adata.X.data.min() >= 1
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))
    assert adata.raw is None
    assert not adata.layers


def test_totals_do_not_exceed_those_over_all_genes(adata: ad.AnnData) -> None:
    held = np.asarray(adata.X.sum(axis=1)).ravel()
    assert (held > 0).all()
    assert (held <= adata.obs["n_counts"]).all()


def test_labels_and_picture(adata: ad.AnnData) -> None:
    labels = adata.obs["bulk_labels"]
    assert labels.notna().all()
    assert labels.nunique() == 10
    assert "CD14+ Monocyte" in labels.cat.categories
    assert adata.obsm["X_umap"].shape == (700, 2)
    assert len(adata.uns["bulk_labels_colors"]) == 10


def test_known_cells_hold_what_they_should(adata: ad.AnnData) -> None:
    """Restored counts mean something: monocytes express LYZ, B cells CD79A."""

    def mean(gene: str, label: str) -> float:
        return float(adata[adata.obs["bulk_labels"] == label, gene].X.mean())

    assert mean("LYZ", "CD14+ Monocyte") > 5 * mean("LYZ", "CD19+ B")
    assert mean("CD79A", "CD19+ B") > 5 * mean("CD79A", "CD14+ Monocyte")


def test_every_call_gives_a_new_object_with_the_same_cells(adata: ad.AnnData) -> None:
    other = scfm.datasets.pbmc68k()
    assert other is not adata
    assert (other.X != adata.X).nnz == 0
    assert other.obs.equals(adata.obs)
    assert other.var_names.equals(adata.var_names)
    other.X.data[:] = 0
    assert adata.X.data.min() >= 1


def test_symbols_match_the_mini_model(adata: ad.AnnData) -> None:
    report = scfm.pp.match_genes(adata, "scfm-mini")
    assert report.gene_key == "index"
    assert report.matched == report.by_symbol > 0
