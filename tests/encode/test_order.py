"""The encoder of expression sequences against a plain sort of each cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from scfm._types import CountBlock
from scfm.encode import OrderEncoder
from scfm.encode.order import GeneOrder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Cell = tuple[list[int], list[float]]

START, UNKNOWN, FIRST_GENE, ASSAY = 2, 0, 7, 5000
ORDERS = get_args(GeneOrder)
DTYPES = [np.float32, np.float64, np.int32, np.int64, np.uint8]


def block(matrix: Any, row0: int = 0) -> CountBlock:
    matrix = sparse.csr_matrix(matrix)
    totals = np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()
    return CountBlock(row0, matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data, totals)


def encoder(tokens: Any, max_genes: int = 10, prefix: Any = (-1,) * 50, **options: Any) -> OrderEncoder:
    options = {"start": START} | options
    return OrderEncoder(np.asarray(tokens, np.int32), max_genes, prefix=np.asarray(prefix, np.int32), **options)


def split(encode: OrderEncoder, counts: CountBlock) -> tuple[list[Cell], list[int]]:
    found = encode(counts)
    assert found.values is not None
    assert found.tokens.dtype == np.int32
    assert found.values.dtype == np.float32
    assert found.row0 == counts.row0
    assert found.offsets[0] == 0
    assert found.offsets[-1] == len(found.tokens) == len(found.values)
    borders = found.offsets[1:-1]
    cells = zip(np.split(found.tokens, borders), np.split(found.values, borders), strict=True)
    return [(t.tolist(), c.tolist()) for t, c in cells], found.n_genes.tolist()


def genes_of(row: NDArray[np.float64], tokens: NDArray[np.int32], distinct: int) -> list[tuple[int, int, np.float32]]:
    """First column, token and count of each expressed gene."""
    sums: dict[int, float] = {}
    for column in np.flatnonzero((row != 0) & (tokens >= 0)).tolist():
        token = tokens[column]
        first = column if token == distinct else int(np.flatnonzero(tokens == token)[0])
        sums[first] = sums.get(first, 0.0) + row[column]
    return [(first, int(tokens[first]), np.float32(value)) for first, value in sums.items()]


def oracle(encode: OrderEncoder, matrix: Any) -> tuple[list[Cell], list[int]]:
    """What the encoder should give, for every order but a random one."""
    keys: dict[str, Any] = {
        "input": lambda gene: gene[0],
        "vocabulary": lambda gene: (gene[1], gene[0]),
        "expression": lambda gene: (-gene[2], gene[1], gene[0]),
    }
    cells, n_genes = [], []
    for i, row in enumerate(np.asarray(matrix, np.float64)):
        genes = sorted(genes_of(row, encode.column_tokens, encode.distinct), key=keys[encode.order])
        kept = genes[: encode.max_genes]
        counts = np.array([gene[2] for gene in kept], np.float32)
        if encode.scale:
            counts = counts / np.float32(counts.sum(dtype=np.float64)) * np.float32(encode.scale)
        if encode.clip:
            counts = np.minimum(counts, np.float32(encode.clip))
        fed = encode.max_genes - (not encode.read_last)
        filled = 0 if encode.pad < 0 else fed - len(kept[:fed])
        tokens = [gene[1] for gene in kept[:fed]] + [encode.pad] * filled
        head = [encode.prefix[i], encode.start] if encode.prefix[i] >= 0 else [encode.start]
        dropped = len(genes) < encode.min_genes or (encode.keep_cells is not None and not encode.keep_cells[i])
        cell = ([*head, *tokens], [1.0] * len(head) + counts[:fed].tolist() + [0.0] * filled)
        cells.append(([], []) if dropped else cell)
        n_genes.append(-1 if dropped else len(genes))
    return cells, n_genes


@dataclass
class Drawn:
    """A matrix with columns that share genes, and an encoder for it."""

    rng: np.random.Generator
    n_columns: int
    dtype: Any
    n_cells: int = 7

    def matrix(self) -> NDArray[Any]:
        counts = self.rng.geometric(0.3, (self.n_cells, self.n_columns))
        counts[0] = 0
        values = counts * (self.rng.random(counts.shape) < self.rng.random((self.n_cells, 1)))
        fraction = 0.25 if np.issubdtype(self.dtype, np.floating) else 1
        return (values * fraction).astype(self.dtype)

    def tokens(self) -> NDArray[np.int32]:
        tokens = (FIRST_GENE + self.rng.permutation(2 * self.n_columns)[: self.n_columns]).astype(np.int32)
        tokens[self.rng.random(self.n_columns) < 0.2] = -1
        tokens[self.rng.random(self.n_columns) < self.rng.choice([0, 0.3])] = FIRST_GENE
        tokens[self.rng.random(self.n_columns) < self.rng.choice([0, 0.3])] = UNKNOWN
        return tokens

    def encoder(self, order: str, threads: int = 1) -> OrderEncoder:
        pick = self.rng.choice
        return encoder(
            self.tokens(),
            int(self.rng.integers(1, 1 + 2 * self.n_columns)),
            np.where(self.rng.random(self.n_cells) < 0.5, ASSAY, -1),
            order=order,
            read_last=bool(pick(2)),
            clip=float(pick([0, 1.5, 3])),
            scale=float(pick([0, 100])),
            distinct=int(pick([-1, UNKNOWN])),
            keep_cells=self.rng.random(self.n_cells) < 0.7 if pick(2) else None,
            min_genes=int(pick([0, 0, 1, 5])),
            pad=int(pick([-1, -1, 1])),
            seed=int(self.rng.integers(2**63)),
            threads=threads,
        )


@given(
    seed=st.integers(0, 10_000),
    n_columns=st.integers(1, 60),
    order=st.sampled_from(["input", "vocabulary", "expression"]),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 4),
)
def test_equal_to_a_sort(seed: int, n_columns: int, order: str, dtype: type, threads: int) -> None:
    drawn = Drawn(np.random.default_rng(seed), n_columns, dtype)
    matrix, encode = drawn.matrix(), drawn.encoder(order, threads)
    (cells, n_genes), (expected, expected_n) = split(encode, block(matrix)), oracle(encode, matrix)
    assert n_genes == expected_n
    assert [tokens for tokens, _ in cells] == [tokens for tokens, _ in expected]
    for (_, counts), (_, expected_counts) in zip(cells, expected, strict=True):
        np.testing.assert_allclose(counts, expected_counts, rtol=2e-7 if encode.scale else 0)


@given(
    seed=st.integers(0, 10_000),
    n_columns=st.integers(1, 60),
    order=st.sampled_from(ORDERS),
    cuts=st.lists(st.integers(0, 7), max_size=4).map(sorted),
)
def test_storage_threads_and_borders_of_blocks_play_no_part(
    seed: int, n_columns: int, order: str, cuts: list[int]
) -> None:
    drawn = Drawn(np.random.default_rng(seed), n_columns, np.float32)
    matrix, encode = drawn.matrix(), drawn.encoder(order)
    expected, expected_n = split(encode, block(matrix))

    stored = matrix.copy()
    zeros = (stored == 0) & (drawn.rng.random(stored.shape) < 0.3)
    stored[zeros] = -1
    shuffled = sparse.csr_matrix(stored)
    for start, stop in zip(shuffled.indptr[:-1], shuffled.indptr[1:], strict=True):
        places = start + drawn.rng.permutation(stop - start)
        shuffled.indices[start:stop], shuffled.data[start:stop] = shuffled.indices[places], shuffled.data[places]
    shuffled.data[shuffled.data < 0] = 0
    assert split(encode, block(shuffled)) == (expected, expected_n)

    options = {name: getattr(encode, name) for name in encode.__match_args__ if not name.startswith("_")}
    assert split(OrderEncoder(**options | {"threads": 3}), block(matrix)) == (expected, expected_n)

    cells: list[Cell] = []
    n_genes: list[int] = []
    for start, stop in zip([0, *cuts], [*cuts, len(matrix)], strict=True):
        if start < stop:
            part = split(encode, block(matrix[start:stop], row0=start))
            cells += part[0]
            n_genes += part[1]
    assert (cells, n_genes) == (expected, expected_n)


@given(seed=st.integers(0, 10_000), n_columns=st.integers(1, 60))
def test_random_order_keeps_the_genes_with_their_counts(seed: int, n_columns: int) -> None:
    drawn = Drawn(np.random.default_rng(seed), n_columns, np.float64)
    matrix, tokens = drawn.matrix(), drawn.tokens()
    options: dict[str, Any] = {"read_last": True, "distinct": UNKNOWN, "seed": seed}
    shuffled, plain = (
        split(encoder(tokens, n_columns, order=order, **options), block(matrix)) for order in ("random", "input")
    )
    assert shuffled[1] == plain[1]
    for ours, theirs in zip(shuffled[0], plain[0], strict=True):
        assert (ours[0][0], ours[1][0]) == (START, 1)
        assert sorted(zip(*ours, strict=True)) == sorted(zip(*theirs, strict=True))
    short, _ = split(encoder(tokens, 3, order="random", **options), block(matrix))
    assert short == [(of_cell[:4], counts[:4]) for of_cell, counts in shuffled[0]]


def test_random_order_is_drawn_from_the_cell_and_the_seed() -> None:
    tokens = np.arange(FIRST_GENE, FIRST_GENE + 100)
    cells = np.ones((12, 100), np.float32)
    cells[:, 0] = np.arange(1, 13)

    def order(seed: int, matrix: Any = cells, row0: int = 0, tokens: Any = tokens) -> list[list[int]]:
        found = split(encoder(tokens, 200, order="random", seed=seed), block(matrix, row0))[0]
        return [of_cell[1:] for of_cell, _ in found]

    first = order(1)
    assert first == order(1)
    assert first == order(1, cells[:, ::-1], tokens=tokens[::-1])  # of the gene, not of its place in var
    assert first == order(1, row0=5)  # of the cell, not of its place in the file
    assert first[::-1] == order(1, cells[::-1])
    assert order(1, cells[[3, 3]]) == [first[3], first[3]]
    distinct = {tuple(cell) for seed in (0, 1, 2**63 - 1) for cell in order(seed)}
    assert len(distinct) == 36
    assert tuple(tokens) not in distinct


def test_random_order_is_uniform() -> None:
    """Of 24 orders of 4 genes each occurs about equally often."""
    n = 6000
    encode = encoder(np.arange(FIRST_GENE, FIRST_GENE + 4), 5, np.full(n, -1), order="random")
    counts = np.arange(1, n + 1, dtype=np.float32)[:, None].repeat(4, axis=1)
    found = encode(block(counts)).tokens.reshape(n, 5)[:, 1:]
    seen = np.unique(found, axis=0, return_counts=True)[1]
    assert len(seen) == 24
    assert np.abs(seen - n / 24).max() < 5 * np.sqrt(n / 24)


def test_merged_columns_stand_at_the_first_of_them() -> None:
    """Also where a cell expresses only the others."""
    tokens = [12, 9, 8, 12]
    matrix = np.array([[1, 2, 3, 4], [0, 2, 3, 4], [0, 2, 3, 0]], np.float32)
    assert split(encoder(tokens), block(matrix))[0] == [
        ([START, 12, 9, 8], [1, 5, 2, 3]),
        ([START, 12, 9, 8], [1, 4, 2, 3]),
        ([START, 9, 8], [1, 2, 3]),
    ]
    assert split(encoder(tokens, order="vocabulary"), block(matrix))[0][0] == ([START, 8, 9, 12], [1, 3, 2, 5])
    assert split(encoder(tokens, order="expression"), block(matrix))[0][0] == ([START, 12, 8, 9], [1, 5, 3, 2])
    assert split(encoder(tokens), block(matrix))[1] == [3, 3, 2]


def test_sums_are_made_before_rounding() -> None:
    matrix = np.array([[2.0**24, 1, 1]])
    assert split(encoder([8, 8, 8]), block(matrix))[0] == [([START, 8], [1, 2**24 + 2])]


def test_unknown_genes_stay_apart() -> None:
    tokens = [UNKNOWN, 9, UNKNOWN, 9]
    matrix = np.array([[1, 2, 3, 4]], np.float32)
    assert split(encoder(tokens), block(matrix)) == ([([START, UNKNOWN, 9], [1, 4, 6])], [2])
    cells, n_genes = split(encoder(tokens, distinct=UNKNOWN), block(matrix))
    assert cells == [([START, UNKNOWN, 9, UNKNOWN], [1, 1, 6, 3])]
    assert n_genes == [3]
    by_token = split(encoder(tokens, distinct=UNKNOWN, order="vocabulary"), block(matrix))[0]
    assert by_token == [([START, UNKNOWN, UNKNOWN, 9], [1, 1, 3, 6])]


@pytest.mark.parametrize("order", ["vocabulary", "expression"])
@pytest.mark.parametrize("n", [1, 50, 5000])
def test_a_long_run_of_ties_is_in_vocabulary_order(n: int, order: str) -> None:
    columns = np.random.default_rng(0).permutation(n)
    found = split(encoder(columns, n + 1, order=order), block(np.ones((1, n), np.float32)))
    assert found[0][0][0] == [START, *range(n)]


@pytest.mark.parametrize(
    ("read_last", "tokens", "counts"), [(False, [8, 7], [30, 10]), (True, [8, 7, 10], [30, 10, 20])]
)
def test_the_last_gene_of_a_full_cell(read_last: bool, tokens: list[int], counts: list[float]) -> None:
    """It counts for the scale, read or not; the fourth gene never does."""
    matrix = np.array([[3, 1, 2, 90], [3, 1, 0, 0]], np.float32)
    encode = encoder([8, 7, 10, 9], 3, scale=60, read_last=read_last)
    assert split(encode, block(matrix)) == (
        [([START, *tokens], [1, *counts]), ([START, 8, 7], [1, 45, 15])],
        [4, 2],
    )


def test_counts_are_clipped_after_scaling() -> None:
    matrix = np.array([[30, 10, 60]], np.float32)
    assert split(encoder([7, 8, 9], clip=12), block(matrix))[0][0][1] == [1, 12, 10, 12]
    found = split(encoder([7, 8, 9], 3, scale=20, clip=5), block(matrix))[0][0]
    assert found == ([START, 7, 8], [1, 5, 2])


def test_cells_that_are_left_out() -> None:
    matrix = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]], np.float32)
    keep = np.array([True, True, False, True])
    full: Cell = ([START, 7, 8, 9], [1, 1, 1, 1])
    encode = encoder([7, 8, 9], prefix=[-1] * 4, keep_cells=keep)
    assert split(encode, block(matrix)) == (
        [full, ([START, 7, 8], [1, 1, 1]), ([], []), ([START], [1])],
        [3, 2, -1, 0],
    )
    encode = encoder([7, 8, 9], prefix=[-1] * 4, keep_cells=keep, min_genes=3)
    assert split(encode, block(matrix)) == ([full, ([], []), ([], []), ([], [])], [3, -1, -1, -1])
    padded = encoder([7, 8, 9], 5, prefix=[-1] * 4, min_genes=3, pad=1)
    assert split(padded, block(matrix))[0][:2] == [([START, 7, 8, 9, 1], [1, 1, 1, 1, 0]), ([], [])]


def test_prefix_and_padding() -> None:
    matrix = np.array([[4, 0], [0, 0]], np.float32)
    encode = encoder([7, 8], 4, prefix=[-1, ASSAY, -1, ASSAY], pad=1)
    for row0, head in ((0, [[], [ASSAY]]), (1, [[ASSAY], []])):
        cells, n_genes = split(encode, block(matrix, row0))
        assert [of_cell for of_cell, _ in cells] == [[*head[0], START, 7, 1, 1], [*head[1], START, 1, 1, 1]]
        assert [counts for _, counts in cells] == [[1] * len(head[0]) + [1, 4, 0, 0], [1] * len(head[1]) + [1, 0, 0, 0]]
        assert n_genes == [1, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_what_is_no_count(value: float, dtype: type) -> None:
    """Also in a column without a gene."""
    matrix = sparse.csr_matrix(np.array([[0, 1], [value, 0]], dtype))
    with pytest.raises(ValueError, match=f"Cell 11 holds the value {value} in column 0: counts must be finite"):
        encoder([-1, 8])(block(matrix, row0=10))


def test_negative_integers() -> None:
    with pytest.raises(ValueError, match="Cell 0 holds the value -3 in column 1"):
        encoder([7, 8])(block(np.array([[1, -3]], np.int64)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
def test_dtype_of_the_counts_plays_no_part(dtype: type, order: str) -> None:
    drawn = Drawn(np.random.default_rng(3), 40, np.uint8)
    matrix, encode = drawn.matrix(), drawn.encoder(order)
    assert split(encode, block(matrix.astype(dtype))) == split(encode, block(matrix.astype(np.float32)))


def test_a_block_without_cells_and_a_source_without_genes() -> None:
    found = encoder([7], threads=2)(block(sparse.csr_matrix((0, 1), dtype=np.float32)))
    assert (found.n_cells, len(found.tokens), len(found.n_genes)) == (0, 0, 0)
    assert split(encoder([-1, -1]), block(np.ones((2, 2), np.float32))) == ([([START], [1])] * 2, [0, 0])
