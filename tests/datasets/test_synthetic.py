from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest

import scfm

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 10_000
"""Cells of a random stream."""


def dense(adata: ad.AnnData) -> np.ndarray:
    return adata.to_memory().X.toarray()


def test_counts_are_csr_and_whole() -> None:
    adata = scfm.datasets.synthetic(40, 300, genes_per_cell=50)
    assert (adata.shape, adata.X.format, adata.X.dtype) == ((40, 300), "csr", np.float32)
    assert adata.X.has_canonical_format
    assert adata.X.data.min() >= 1
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))
    np.testing.assert_array_equal(adata.obs["n_counts"], dense(adata).sum(axis=1))
    assert adata.obs["n_counts"].dtype == np.float32
    assert adata.obs_names[:2].tolist() == ["cell-0", "cell-1"]


def test_genes_are_those_of_the_mini_model_then_invented() -> None:
    vocabulary = scfm.model.load("scfm-mini").vocabulary
    n_known = len(vocabulary.genes)
    adata = scfm.datasets.synthetic(3, n_known + 20, genes_per_cell=10)
    assert adata.var_names[:n_known].tolist() == vocabulary.genes.tolist()
    assert adata.var_names.is_unique
    assert scfm.pp.match_genes(adata, "scfm-mini").matched == n_known
    few = scfm.datasets.synthetic(3, 5, genes_per_cell=2)
    assert few.var_names.tolist() == vocabulary.genes[:5].tolist()


def test_own_genes() -> None:
    adata = scfm.datasets.synthetic(3, 4, genes_per_cell=2, genes=["a", "b", "c", "d"])
    assert adata.var_names.tolist() == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("n_genes", "genes_per_cell"), [(5_000, 1_000), (2_000, 100), (1_000, 500)])
def test_depth_is_as_asked(n_genes: int, genes_per_cell: int) -> None:
    adata = scfm.datasets.synthetic(300, n_genes, genes_per_cell=genes_per_cell)
    detected = np.diff(adata.X.indptr)
    assert abs(np.median(detected) / genes_per_cell - 1) < 0.15
    assert np.percentile(detected, 90) > 1.2 * np.median(detected) or genes_per_cell == n_genes / 2


@pytest.mark.parametrize("n_genes", [1, 2, 10])
def test_small_and_full_cells(n_genes: int) -> None:
    adata = scfm.datasets.synthetic(50, n_genes, genes_per_cell=n_genes)
    assert np.diff(adata.X.indptr).min() >= 1


@pytest.mark.parametrize("n_cells", [1, 7, 99])
def test_a_cell_does_not_depend_on_how_many_there_are(n_cells: int) -> None:
    many = scfm.datasets.synthetic(100, 50, genes_per_cell=10, seed=3)
    few = scfm.datasets.synthetic(n_cells, 50, genes_per_cell=10, seed=3)
    np.testing.assert_array_equal(dense(few), dense(many)[:n_cells])


def test_a_cell_does_not_depend_on_later_blocks() -> None:
    one = scfm.datasets.synthetic(BLOCK - 1, 6, genes_per_cell=2)
    three = scfm.datasets.synthetic(2 * BLOCK + 1, 6, genes_per_cell=2)
    assert three.n_obs == len(three.obs_names) == 2 * BLOCK + 1
    np.testing.assert_array_equal(dense(one), dense(three)[: BLOCK - 1])
    assert not np.array_equal(dense(three)[:100], dense(three)[BLOCK : BLOCK + 100])


def test_a_seed_gives_the_same_and_another_seed_gives_other_cells() -> None:
    first, again, other = (dense(scfm.datasets.synthetic(20, 50, genes_per_cell=10, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("n_cells", [0, 25, BLOCK + 5])
def test_a_file_holds_the_same_as_memory(n_cells: int, tmp_path: Path) -> None:
    in_memory = scfm.datasets.synthetic(n_cells, 30, genes_per_cell=3)
    backed = scfm.datasets.synthetic(n_cells, 30, genes_per_cell=3, path=tmp_path / "a.h5ad")
    assert backed.isbacked
    backed.file.close()
    stored = ad.read_h5ad(tmp_path / "a.h5ad")
    assert stored.shape == in_memory.shape == (n_cells, 30)
    np.testing.assert_array_equal(dense(stored), dense(in_memory))
    assert stored.X.dtype == np.float32
    for name in ("obs", "var"):
        assert getattr(stored, name).equals(getattr(in_memory, name))
        assert getattr(stored, name).index.equals(getattr(in_memory, name).index)


def test_a_file_can_be_embedded(tmp_path: Path) -> None:
    backed = scfm.datasets.synthetic(20, 100, genes_per_cell=10, path=str(tmp_path / "a.h5ad"))
    scfm.tl.embed(backed, "scfm-mini")
    assert np.isfinite(backed.obsm["X_scfm_mini"]).all()
    backed.file.close()


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.h5ad"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="a.h5ad exists already"):
        scfm.datasets.synthetic(2, 5, genes_per_cell=2, path=path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_cells": -1}, "n_cells=-1"),
        ({"n_genes": 0}, "n_genes=0"),
        ({"genes_per_cell": 0}, "genes_per_cell=0"),
        ({"n_genes": 10, "genes_per_cell": 11}, "genes_per_cell=11"),
        ({"n_genes": 3, "genes_per_cell": 2, "genes": ["a", "b"]}, "genes has 2 entries, n_genes is 3"),
    ],
    ids=str,
)
def test_sizes_out_of_range(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        scfm.datasets.synthetic(**arguments)
