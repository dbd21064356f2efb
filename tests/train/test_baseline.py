"""Logistic regression on principal components: the steps one by one, and that test cells have no influence."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import scfm
from scfm.train.baseline import pca_baseline


def drawn(n: int = 150, n_genes: int = 120, n_classes: int = 3) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Counts of classes with ten genes each of their own."""
    rng = np.random.default_rng(0)
    codes = np.arange(n) % n_classes
    rates = rng.gamma(0.5, size=(n_classes, n_genes)) * 0.5
    for code in range(n_classes):
        rates[code, code * 10 : code * 10 + 10] += 1
    return sparse.csr_matrix(rng.poisson(rates[codes] * rng.gamma(3, size=(n, 1)) / 3)), codes


TRAIN, TEST = np.arange(0, 100), np.arange(149, 99, -1)


def test_equal_to_the_steps_of_scanpy_and_scikit_learn() -> None:
    counts, codes = drawn()
    adata = AnnData(counts.astype(np.float32))
    sc.pp.normalize_total(adata, target_sum=10_000)
    sc.pp.log1p(adata)
    training = adata[TRAIN].copy()
    sc.pp.highly_variable_genes(training, n_top_genes=40)
    genes = training.var["highly_variable"].to_numpy()
    pca = PCA(10, svd_solver="full").fit(training.X[:, genes].toarray())
    parts = [pca.transform(adata.X[rows][:, genes].toarray()) for rows in (TRAIN, TEST)]
    scaler = StandardScaler().fit(parts[0])
    fitted = LogisticRegression(max_iter=1000).fit(scaler.transform(parts[0]), codes[TRAIN])
    found = pca_baseline(counts, codes, TRAIN, TEST, n_genes=40, n_components=10)
    np.testing.assert_allclose(found, fitted.predict_proba(scaler.transform(parts[1])), atol=2e-3)
    assert (found.argmax(axis=1) == codes[TEST]).mean() > 0.8
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_nothing_of_the_test_cells_has_an_influence() -> None:
    counts, codes = drawn()
    plain = pca_baseline(counts, codes, TRAIN, TEST, n_genes=40)
    others = counts.toarray()
    others[TEST[1:]] = np.random.default_rng(1).poisson(9, (49, 120))
    changed = codes.copy()
    changed[TEST] = -1
    found = pca_baseline(sparse.csr_array(others), changed, TRAIN, TEST, n_genes=40)
    np.testing.assert_array_equal(found[0], plain[0])
    assert (found[1:] != plain[1:]).any(axis=1).all()
    alone = pca_baseline(counts, codes, TRAIN, TEST[:1], n_genes=40)
    np.testing.assert_allclose(alone[0], plain[0], rtol=1e-6)


def test_real_cells() -> None:
    adata = scfm.datasets.pbmc68k()
    codes, cells = adata.obs["bulk_labels"].cat.codes.to_numpy(), np.arange(adata.n_obs)
    before = adata.X.copy()
    found = pca_baseline(adata.X, codes, cells[::2], cells[1::2])
    assert found.shape == (350, 10)
    assert (found.argmax(axis=1) == codes[1::2]).mean() > 0.7
    assert abs(adata.X - before).max() == 0
    np.testing.assert_array_equal(found, pca_baseline(adata.X, codes, cells[::2], cells[1::2]))


def test_classes_of_no_training_cell_have_probability_0() -> None:
    counts, codes = drawn()
    found = pca_baseline(counts, codes * 2, TRAIN, TEST, n_classes=7)
    assert found.shape == (50, 7)
    np.testing.assert_array_equal(found[:, [1, 3, 5, 6]], 0)
    np.testing.assert_array_equal(found[:, ::2][:, :3], pca_baseline(counts, codes, TRAIN, TEST))


def test_cells_and_genes_without_counts() -> None:
    counts, codes = drawn()
    counts = counts.tolil()
    counts[:, 5], counts[3], counts[TEST[0]] = 0, 0, 0
    found = pca_baseline(counts.tocsr(), codes, TRAIN, TEST, n_genes=40)
    assert np.isfinite(found).all()
    few = pca_baseline(counts.tocsr(), codes, TRAIN[:6], TEST, n_genes=40)
    np.testing.assert_allclose(few.sum(axis=1), 1, rtol=1e-6)


def test_the_matrix_stays_sparse() -> None:
    counts = sparse.random_array((3000, 6000), density=0.01, format="csr", rng=np.random.default_rng(0))
    codes = np.arange(3000) % 3
    pca_baseline(counts[:90], codes[:90], np.arange(60), np.arange(60, 90))  # what is imported does not count
    tracemalloc.start()
    pca_baseline(counts, codes, np.arange(2000), np.arange(2000, 3000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 2000 * 4  # the chosen genes of the training cells as float32


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test": [99, 100]}, "1 cells are in both train and test, the first is row 99"),
        ({"train": []}, "train must be whole numbers"),
        ({"train": np.arange(150) < 100}, r"got bool of shape \(150,\). Of a mask take numpy.flatnonzero"),
        ({"test": [150]}, "test holds rows 150 to 150; counts has rows 0 to 149"),
        ({"test": [-1]}, "test holds rows -1"),
        ({"codes": [0, 1]}, "codes must be a whole number for each of 150 cells"),
        ({"codes": np.zeros(150, int)}, "codes of training cells must be of two or more classes 0, 1, ...; got 0 to 0"),
        ({"codes": np.arange(150) % 3 - 1}, "got -1 to 1"),
        ({"n_classes": 2}, "n_classes=2 is too low for the code 2"),
        ({"counts": -drawn()[0]}, "counts holds negative values"),
        ({"n_genes": 1}, "n_genes must be at least 2"),
        ({"n_components": 0}, "n_components must be at least 1"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], message: str) -> None:
    counts, codes = drawn()
    call: dict[str, Any] = {"counts": counts, "codes": codes, "train": TRAIN, "test": TEST} | changed
    with pytest.raises(ValueError, match=message):
        pca_baseline(**call)
