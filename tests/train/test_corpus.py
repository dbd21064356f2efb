"""The vocabulary of a corpus, against a plain computation in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scfm.genes import Vocabulary, align
from scfm.train.corpus import corpus_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2")

IDS = np.array([f"ENSG{i:011d}" for i in range(60)])
SYMBOLS = np.array([f"GENE{i}" for i in range(60)])
NAMES = Vocabulary(
    IDS[:50],
    np.arange(50, dtype=np.int32),
    None,
    {},
    {"ENSG00000099999": IDS[3]},
    dict(zip(SYMBOLS[:50], IDS[:50], strict=True)),
)


def write(folder: Path, name: str, counts: NDArray[np.generic], var: pd.DataFrame, suffix: str = "h5ad") -> Path:
    adata = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), var=var)
    path = folder / f"{name}.{suffix}"
    adata.write_h5ad(path) if suffix == "h5ad" else adata.write_zarr(path)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[tuple[list[str], NDArray[np.int64]]]]:
    """Three files with other genes under other names; ids and counts of each."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    rates = rng.gamma(0.4, size=60)
    first, second, third = np.arange(0, 40), np.arange(20, 60), np.r_[np.arange(5, 50), 7]
    sizes = ((90, first), (40, second), (10, third))
    counts = [rng.poisson(rates[genes] * rng.uniform(0.5, 2, (n, 1))) for n, genes in sizes]
    ids = [IDS[first].tolist(), IDS[second].tolist(), IDS[third].tolist()]
    retired = pd.Index(np.where(first == 3, "ENSG00000099999", np.char.add(IDS[first], ".7")))
    tables = [
        pd.DataFrame(index=retired),
        pd.DataFrame({"gene_ids": IDS[second]}, index=SYMBOLS[second]),
        pd.DataFrame({"gene_symbols": SYMBOLS[third]}, index=[f"row{i}" for i in range(len(third))]),
    ]
    kinds = "h5ad", "zarr", "h5ad"
    paths = [write(folder, f"file{i}", *parts) for i, parts in enumerate(zip(counts, tables, kinds, strict=True))]
    return paths, list(zip(ids, counts, strict=True))


def weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Median of as many copies of each value as its weight says, in hundredths."""
    return float(np.median(np.repeat(values, np.rint(weights * 100).astype(int))))


def plain(files: list[tuple[list[str], NDArray[np.int64]]], power: float, *, min_cells: int) -> pd.DataFrame:
    """Medians and means, one gene at a time."""
    rows = {}
    for gene in sorted({gene for ids, _ in files for gene in ids}):
        values, weights = [], []
        for ids, counts in files:
            own = counts[:, [one == gene for one in ids]].sum(axis=1)
            found = own[own > 0] / counts.sum(axis=1)[own > 0] * 10_000
            values.append(found)
            weights.append(np.full(len(found), (len(counts) / 90) ** (power - 1)))
        value, weight = np.concatenate(values), np.concatenate(weights)
        if len(value) >= min_cells:
            rows[gene] = weighted_median(value, weight), np.average(value, weights=weight)
    return pd.DataFrame(rows, index=["median", "mean"]).T


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_equal_to_a_plain_computation(corpus: Any, power: float) -> None:
    paths, files = corpus
    vocabulary, sources = corpus_vocabulary(
        paths, ["<pad>", "<mask>"], names=NAMES, min_cells=8, power=power, means=True
    )
    expected = plain(files, power, min_cells=8)
    assert 40 < len(expected) < 60
    assert vocabulary.genes.tolist() == expected.index.tolist()
    assert vocabulary.tokens.tolist() == list(range(2, 2 + len(expected)))
    assert dict(vocabulary.special_tokens) == {"<pad>": 0, "<mask>": 1}
    if power == 1:  # where hundredths are exact
        np.testing.assert_allclose(vocabulary.medians, expected["median"], rtol=1e-6)
    else:
        assert np.mean(np.isclose(vocabulary.medians, expected["median"], rtol=1e-6)) > 0.95
    np.testing.assert_allclose(vocabulary.columns["mean"], expected["mean"], rtol=1e-6)
    assert sources.index.tolist() == ["file0", "file1", "file2"]
    assert sources["cells"].tolist() == [90, 40, 10]
    assert sources["counts"].tolist() == [int(counts.sum()) for _, counts in files]
    known = set(expected.index)
    assert sources["genes"].tolist() == [len(known & set(ids)) for ids, _ in files]


def test_names_are_kept(corpus: Any) -> None:
    """Users' symbols match, also those that only a file of the corpus told, and retired ids."""
    vocabulary, _ = corpus_vocabulary(corpus[0], ["<mask>"], names=NAMES, min_cells=8)
    kept = set(vocabulary.genes.tolist())
    known = [i for i in range(60) if IDS[i] in kept]
    assert [vocabulary.symbol_of[IDS[i]] for i in known] == SYMBOLS[known].tolist()
    assert any(i >= 50 for i in known)
    user = pd.DataFrame(index=[*SYMBOLS[known], "ENSG00000099999", "unheard"])
    tokens = align(user, vocabulary).tokens.tolist()
    assert tokens[:-2] == list(range(1, 1 + len(known)))
    assert tokens[-2:] == [vocabulary.token_of[IDS[3]], -1]


def test_which_genes_are_taken(corpus: Any) -> None:
    paths, files = corpus
    found = {gene: [] for gene in IDS.tolist()}
    for ids, counts in files:
        for gene in set(ids):
            found[gene].append((counts[:, [one == gene for one in ids]].sum(axis=1) > 0).mean())
    by_share, _ = corpus_vocabulary(paths, names=NAMES, min_cells=1, min_share=0.4)
    assert by_share.genes.tolist() == [gene for gene, shares in found.items() if max(shares, default=0) >= 0.4]
    in_all, _ = corpus_vocabulary(paths, names=NAMES, min_cells=1, min_share=0, min_sources=3)
    assert in_all.genes.tolist() == [gene for gene, shares in found.items() if len([s for s in shares if s]) == 3]
    assert 0 < len(in_all.genes) < len(by_share.genes)


def test_sketches_give_nearly_the_same(corpus: Any) -> None:
    exact, _ = corpus_vocabulary(corpus[0], names=NAMES, power=1)
    sketched, _ = corpus_vocabulary(corpus[0], names=NAMES, power=1, exact_values=1000)
    np.testing.assert_array_equal(exact.genes, sketched.genes)
    np.testing.assert_allclose(sketched.medians, exact.medians, rtol=0.1)  # so few values all stay in a sketch


def test_what_does_not_fit(corpus: Any, tmp_path: Path) -> None:
    paths, _ = corpus
    with pytest.raises(ValueError, match=r"No file has Ensembl ids of human genes.*names="):
        corpus_vocabulary(paths[2:])
    with pytest.raises(ValueError, match=r"None of the .* genes is expressed by 1000 cells .* lower min_cells"):
        corpus_vocabulary(paths, names=NAMES, min_cells=1000)
    with pytest.raises(ValueError, match="min_cells"):
        corpus_vocabulary(paths, names=NAMES, min_cells=0)
    var = pd.DataFrame(index=IDS[:20])
    halves = write(tmp_path, "halves", np.full((5, 20), 0.5), var)
    with (
        pytest.warns(UserWarning, match="counts"),
        pytest.raises(ValueError, match=r"halves.*holds 0.5.*counts.*layer="),
    ):
        corpus_vocabulary([halves])
    unknown = write(tmp_path, "unknown", np.ones((5, 20)), pd.DataFrame(index=[f"thing{i}" for i in range(20)]))
    with pytest.raises(ValueError, match=r"unknown.*No gene of the data is known"):
        corpus_vocabulary([*paths, unknown], names=NAMES)
    empty = write(tmp_path, "empty", np.ones((0, 20)), var)
    with pytest.raises(ValueError, match=r"empty.*no cells"):
        corpus_vocabulary([*paths, empty], names=NAMES)
