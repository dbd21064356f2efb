from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from scfm._types import CountBlock
from scfm.encode import ObsDepth, RankEncoder


def block(matrix: sparse.csr_matrix, row0: int = 0) -> CountBlock:
    totals = np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()
    return CountBlock(row0, matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data, totals)


def oracle(matrix: np.ndarray, tokens: np.ndarray, medians: np.ndarray, keep: int) -> list[list[int]]:
    cells = []
    for cell in matrix.astype(np.float64):
        values: dict[int, float] = {}
        for column in np.flatnonzero(cell):
            if tokens[column] >= 0:
                values[tokens[column]] = values.get(tokens[column], 0.0) + cell[column]
        factors = 1.0 / medians
        cells.append(sorted(values, key=lambda token: (-(values[token] * factors[token]), token))[:keep])
    return cells


def split(encoder: RankEncoder, counts: CountBlock) -> list[list[int]]:
    found = encoder(counts)
    return [cell.tolist() for cell in np.split(found.tokens, found.offsets[1:-1])]


@given(
    seed=st.integers(0, 10_000),
    n_genes=st.integers(1, 400),
    max_tokens=st.integers(3, 300),
    n_medians=st.sampled_from([1, 3, 1000]),
    merged=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64, np.int32, np.uint8]),
    threads=st.integers(1, 4),
)
def test_equal_to_a_sort(
    seed: int, n_genes: int, max_tokens: int, n_medians: int, merged: bool, dtype: type, threads: int
) -> None:
    """Few distinct medians make many exact ties, which go by vocabulary order."""
    rng = np.random.default_rng(seed)
    matrix = sparse.random(7, n_genes, density=0.5, format="csr", random_state=rng)
    matrix.data = rng.geometric(0.3, matrix.nnz).astype(dtype)
    vocabulary = n_genes + 4
    tokens = rng.permutation(np.arange(4, vocabulary))[:n_genes].astype(np.int32)
    tokens[rng.random(n_genes) < 0.2] = -1
    if merged:
        tokens[rng.random(n_genes) < 0.3] = 4
    medians = rng.choice(rng.lognormal(size=n_medians), vocabulary)
    encoder = RankEncoder(tokens, medians, max_tokens, threads=threads)
    assert split(encoder, block(matrix)) == oracle(matrix.toarray(), tokens, medians, max_tokens)


@pytest.mark.parametrize("n", [1, 50, 5000])
def test_a_long_run_of_ties_is_in_vocabulary_order(n: int) -> None:
    columns = np.random.default_rng(0).permutation(n)
    matrix = sparse.csr_matrix(np.ones((1, n), np.float32))
    encoder = RankEncoder(columns.astype(np.int32), np.ones(n), max(n, 3))
    assert split(encoder, block(matrix)) == [list(range(n))]


def test_order_finer_than_float32() -> None:
    """Values that are one float32 but different float64 numbers are still put in order."""
    medians = 1.0 / (1.0 + np.arange(5) * 1e-12)
    matrix = sparse.csr_matrix(np.ones((1, 5), np.float32))
    assert split(RankEncoder(np.arange(5, dtype=np.int32), medians, 5), block(matrix)) == [[4, 3, 2, 1, 0]]


def test_special_tokens_and_room() -> None:
    matrix = sparse.csr_matrix(np.array([[1, 2, 3], [0, 0, 0]], np.float32))
    encoder = RankEncoder(np.array([4, 5, 6], np.int32), np.ones(7), 4, first=2, last=3)
    found = encoder(block(matrix))
    assert split(encoder, block(matrix)) == [[2, 6, 5, 3], [2, 3]]
    assert found.n_genes.tolist() == [3, 0]
    with pytest.raises(ValueError, match="leaves no space"):
        RankEncoder(np.array([4], np.int32), np.ones(7), 2, first=2, last=3)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_what_is_no_count(value: float) -> None:
    matrix = sparse.csr_matrix(np.array([[0, 1], [value, 0]]))
    with pytest.raises(ValueError, match=f"Cell 11 holds the value {value} in column 0"):
        RankEncoder(np.array([2, 3], np.int32), np.ones(4), 4)(block(matrix, row0=10))


def test_stored_zeros_count_only_upstream() -> None:
    matrix = sparse.csr_matrix((np.array([0.0, 2.0], np.float32), ([0, 0], [0, 1])), shape=(1, 2))
    tokens, medians = np.array([2, 3], np.int32), np.ones(4)
    assert split(RankEncoder(tokens, medians, 4), block(matrix)) == [[3]]
    upstream = ObsDepth(np.array([2.0], np.float32))
    assert split(RankEncoder(tokens, medians, 4, upstream=upstream), block(matrix)) == [[3, 2]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_upstream_rounding(dtype: type) -> None:
    """The order is that of upstream's own expression on sparse matrices, in the precision of the input."""
    rng = np.random.default_rng(1)
    medians = 1 + rng.integers(0, 3, 3000) * 3e-8
    counts = rng.integers(1, 4, (1, 3000)).astype(dtype)
    totals = np.array([12_345], dtype=dtype)
    scaled = sparse.csr_matrix(counts).multiply(1 / totals[:, None]).tocsr() * dtype(10_000)
    values = scaled.astype(np.float64).multiply(1 / medians).tocsr().toarray()[0]
    encoder = RankEncoder(np.arange(3000, dtype=np.int32), medians, 3000, upstream=ObsDepth(totals))
    ranked = encoder(block(sparse.csr_matrix(counts))).tokens
    assert np.all(np.diff(values[ranked]) <= 0)
    np.testing.assert_array_equal(ranked, np.argsort(-values, kind="stable"))


def test_empty_block() -> None:
    found = RankEncoder(np.array([2], np.int32), np.ones(3), 4, threads=2)(block(sparse.csr_matrix((0, 1))))
    assert found.n_cells == 0
    assert len(found.tokens) == 0
