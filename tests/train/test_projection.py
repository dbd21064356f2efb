"""The linear projection against the singular vectors of the whole matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scfm.genes import Vocabulary
from scfm.train.projection import linear_projection

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

IDS = [f"ENSG{i:011d}" for i in range(40)]
VOCABULARY = Vocabulary.of_names(IDS[:30], ["<pad>", "<mask>"])


def drawn(n: int, genes: list[int], seed: int) -> NDArray[np.int64]:
    """Counts of cells of four kinds."""
    rng, programs = np.random.default_rng(seed), np.random.default_rng(9).gamma(0.5, size=(4, 40)) * 4
    return rng.poisson(programs[rng.integers(4, size=n)][:, genes])


FIRST, SECOND = list(range(40)), [*range(10, 35), 12]
FILES = [(120, FIRST), (30, SECOND)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    for number, (n, genes) in enumerate(FILES):
        counts = sparse.csr_matrix(drawn(n, genes, number).astype(np.float32))
        names = pd.Index([f"{IDS[gene]}.{place}" for place, gene in enumerate(genes)])  # one gene has two columns
        ad.AnnData(counts, var=pd.DataFrame(index=names)).write_h5ad(folder / f"{number}.h5ad")
    return sorted(folder.glob("*.h5ad"))


def normalised(counts: NDArray[np.int64], genes: list[int]) -> NDArray[np.float64]:
    known = np.zeros((len(counts), 30))
    for column, gene in enumerate(genes):
        if gene < 30:
            known[:, gene] += counts[:, column]
    return np.log1p(known / known.sum(axis=1, keepdims=True) * 10_000)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_singular_vectors_of_the_scaled_matrix(files: list[Path], power: float) -> None:
    x = np.concatenate([normalised(drawn(n, genes, i), genes) for i, (n, genes) in enumerate(FILES)])
    weight = np.concatenate([np.full(n, n ** (power - 1.0)) for n, _ in FILES])
    mean = np.average(x, axis=0, weights=weight)
    scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight)) + 0.1
    expected = np.linalg.svd(weight[:, None] * x / scale)[2][:6].T / scale[:, None]
    found = linear_projection(files, VOCABULARY, n_features=6, power=power, n_iter=30)
    signs = np.sign((found.loadings * expected).sum(axis=0))
    np.testing.assert_allclose(found.loadings * signs, expected, atol=2e-3 * np.abs(expected).max())
    cells = ad.read_h5ad(files[1])
    z = normalised(drawn(*FILES[1], seed=1), SECOND) @ (expected * signs)
    np.testing.assert_allclose(found.embed(cells), (z - z.mean(axis=0)) / (z.std(axis=0) + 1e-6), atol=0.02)
    np.testing.assert_array_equal(found.embed(files[1]), found.embed(cells))


def test_files_are_read_again_if_they_are_large(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    held = linear_projection(files, VOCABULARY, n_features=4)
    monkeypatch.setattr("scfm.train.projection.HELD", 500)
    monkeypatch.setattr("scfm.train.projection.ROWS", 16)
    read = linear_projection([str(path) for path in files], VOCABULARY, n_features=4)
    np.testing.assert_allclose(read.loadings, held.loadings, atol=1e-5)


def test_vectors_of_genes(files: list[Path]) -> None:
    projection = linear_projection(files[0].parent / "*.h5ad", VOCABULARY, n_features=4)
    vectors = projection.gene_vectors(std=0.5)
    assert vectors.index.tolist() == IDS[:30]
    assert vectors.to_numpy().std() == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(np.corrcoef(vectors.to_numpy().ravel(), projection.loadings.ravel())[0, 1], 1, atol=1e-6)


def test_what_does_not_fit(files: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"n_features=31 is more than there are genes \(30\) or cells \(150\)"):
        linear_projection(files, VOCABULARY, n_features=31)
    with pytest.raises(ValueError, match=r"0.h5ad.*No gene of the data is known"):
        linear_projection(files, Vocabulary.of_names(["ENSG00000999999"], ()), n_features=1)
    with pytest.raises(FileNotFoundError, match="pattern"):
        linear_projection(files[0].parent / "*.none", VOCABULARY)
