"""Where blocks end, and what is in them."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pytest
from scipy import sparse

from scfm.read import open_counts
from scfm.read._rows import _spans
from scfm.read.checks import spread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scfm.read import CountSource

FORMATS = ["csr", "csc", "dense", "fortran", "h5 csr", "h5 dense"]


@pytest.fixture(params=FORMATS)
def source(request: pytest.FixtureRequest, build: Callable[..., ad.AnnData], tmp_path: Path) -> Any:
    form: str = request.param
    adata = build(form.removeprefix("h5 "))
    if form.startswith("h5"):
        adata.write_h5ad(tmp_path / "a.h5ad")
    with open_counts(tmp_path / "a.h5ad" if form.startswith("h5") else adata) as opened:
        yield opened


def borders(source: CountSource, *args: Any, **options: Any) -> list[tuple[int, int]]:
    return [(block.row0, block.row0 + block.n_cells) for block in source.blocks(*args, **options)]


def greedy(values: np.ndarray, rows: int, start: int, stop: int, max_nnz: int) -> list[tuple[int, int]]:
    """The rule of the borders, cell by cell."""
    out = []
    while start < stop:
        end = start + 1
        while end < stop and end - start < rows and np.count_nonzero(values[start : end + 1]) <= max_nnz:
            end += 1
        out.append((start, end))
        start = end
    return out


@pytest.mark.parametrize("rows", [1, 7, 23, 4096])
def test_borders_by_rows(source: CountSource, rows: int) -> None:
    assert borders(source, rows) == [(row, min(row + rows, 23)) for row in range(0, 23, rows)]


@pytest.mark.parametrize("step", [1, 2, 10**6])
def test_borders_by_values(source: CountSource, step: int, x: np.ndarray) -> None:
    source._matrix.step = step
    for rows, max_nnz, (start, stop) in itertools.product((1, 7, 100), (1, 9, 20, 10**6), ((0, 23), (3, 16))):
        found = borders(source, rows, start=start, stop=stop, max_nnz=max_nnz)
        assert found == greedy(x, rows, start, stop, max_nnz)


def test_borders_do_not_change_the_cells(source: CountSource) -> None:
    whole = source.read(0, 23)
    for options in ({"rows": 7}, {"max_nnz": 9}, {"rows": 3, "start": 2, "stop": 20, "max_nnz": 5}):
        for block in source.blocks(**options):
            a, b = whole.indptr[block.row0], whole.indptr[block.row0 + block.n_cells]
            np.testing.assert_array_equal(block.indptr, whole.indptr[block.row0 :][: block.n_cells + 1] - a)
            np.testing.assert_array_equal(block.indices, whole.indices[a:b])
            np.testing.assert_array_equal(block.data, whole.data[a:b])
            np.testing.assert_array_equal(block.totals, whole.totals[block.row0 :][: block.n_cells])


def test_no_cells(source: CountSource) -> None:
    assert list(source.blocks(start=4, stop=4)) == []
    assert list(source.blocks(start=4, stop=4, max_nnz=2)) == []
    block = source.read(4, 4)
    assert (block.n_cells, len(block.data), len(block.totals), block.indptr.tolist()) == (0, 0, 0, [0])


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
@pytest.mark.parametrize("disk", [False, True])
def test_a_source_without_cells(form: str, disk: bool, build: Callable[..., ad.AnnData], tmp_path: Path) -> None:
    adata = build(form)[:0].copy()
    if disk and form != "csc":
        adata.write_h5ad(tmp_path / "a.h5ad")
    with open_counts(tmp_path / "a.h5ad" if disk and form != "csc" else adata) as source:
        assert (source.n_obs, source.n_vars, len(source.obs_names)) == (0, 11, 0)
        assert list(source.blocks()) == list(source.blocks(max_nnz=3)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1}, "Cells -1 to 23 are not in a source of 23 cells"),
        ({"stop": 24}, "Cells 0 to 24"),
        ({"start": 5, "stop": 4}, "Cells 5 to 4"),
        ({"rows": 0}, "rows=0"),
        ({"max_nnz": 0}, "max_nnz=0"),
    ],
)
def test_wrong_borders(arguments: dict[str, int], message: str, build: Callable[..., ad.AnnData]) -> None:
    source = open_counts(build())
    with pytest.raises(ValueError, match=message):
        source.blocks(**arguments)  # at once, not at the first block
    if not {"rows", "max_nnz"} & set(arguments):
        with pytest.raises(ValueError, match=message):
            source.read(arguments.get("start", 0), arguments.get("stop", 23))


def test_totals_of_empty_rows() -> None:
    values = np.zeros((6, 4), dtype=np.int64)
    values[2], values[4, 1] = [1, 0, 5, 2], 3
    for matrix in (values, sparse.csr_matrix(values)):
        assert open_counts(ad.AnnData(matrix)).read(0, 6).totals.tolist() == [0, 0, 8, 0, 3, 0]


def test_totals_do_not_depend_on_the_block() -> None:
    values = np.random.default_rng(0).random((40, 700), dtype=np.float32) * 100
    with pytest.warns(UserWarning, match="not counts"):
        source = open_counts(ad.AnnData(sparse.csr_matrix(values)))
    whole = source.read(0, 40).totals
    np.testing.assert_array_equal(np.concatenate([block.totals for block in source.blocks(3)]), whole)
    np.testing.assert_allclose(whole, values.sum(axis=1, dtype=np.float64), rtol=1e-12)


def test_totals_are_exact_in_small_dtypes() -> None:
    values = np.full((2, 300), 255, dtype=np.uint8)
    assert open_counts(ad.AnnData(sparse.csr_matrix(values))).read(0, 2).totals.tolist() == [76500, 76500]


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    ("stored", "read"),
    [
        *((name, name) for name in ("uint8", "uint16", "int32", "int64", "uint64", "float32", "float64")),
        ("bool", "uint8"),
        (">f4", "float32"),
        (">i8", "int64"),
    ],
)
@pytest.mark.parametrize("dense", [False, True])
def test_dtypes(stored: str, read: str, dense: bool, on_disk: bool, x: np.ndarray, tmp_path: Path) -> None:
    values = x.astype(stored)
    matrix = sparse.csr_matrix(values.astype(values.dtype.newbyteorder("=")))
    matrix.data = matrix.data.astype(stored)
    adata = ad.AnnData(values if dense else matrix)
    if on_disk:
        adata.write_h5ad(tmp_path / "a.h5ad")
    with open_counts(tmp_path / "a.h5ad" if on_disk else adata) as source:
        block = source.read(0, 23)
    assert block.data.dtype == np.dtype(read)
    assert block.data.dtype.isnative
    assert (block.data > 0).all()
    np.testing.assert_array_equal(block.totals, values.astype(float).sum(axis=1))


def test_float16(x: np.ndarray) -> None:
    block = open_counts(ad.AnnData(x.astype(np.float16))).read(0, 23)
    assert block.data.dtype == np.float32
    np.testing.assert_array_equal(block.totals, x.sum(axis=1))


@pytest.mark.parametrize("dtype", ["complex64", "object", "U3"])
def test_unreadable_dtypes(dtype: str, x: np.ndarray) -> None:
    with pytest.raises(TypeError, match=r"X of AnnData has dtype .* must be integers, floating point numbers or bool"):
        open_counts(ad.AnnData(x.astype(dtype)))


def doubled(dtype: str = "float32") -> sparse.csr_matrix:
    """Rows with columns stored twice, next to each other and apart, unsorted rows, explicit zeros and empty rows."""
    indptr = [0, 0, 4, 7, 7, 9, 10, 10]
    indices = [2, 0, 2, 1, 3, 1, 0, 4, 4, 2]
    data = np.array([200, 2, 100, 4, 5, 0, 6, 1, 1, 7]).astype(dtype)
    return sparse.csr_matrix((data, np.array(indices, dtype=np.int32), np.array(indptr, dtype=np.int32)), shape=(7, 5))


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_entries_stored_twice(dtype: str, on_disk: bool, rows: int, tmp_path: Path) -> None:
    adata = ad.AnnData(doubled(dtype))
    if on_disk:
        adata.write_h5ad(tmp_path / "a.h5ad")
    values = doubled(dtype)
    expected = (
        values.astype(float if dtype != "bool" else bool).toarray().astype(float)
    )  # a sum may not fit into 8 bits
    with open_counts(tmp_path / "a.h5ad" if on_disk else adata) as source:
        for block in source.blocks(rows):
            for i in range(block.n_cells):
                part = slice(block.indptr[i], block.indptr[i + 1])
                assert len(np.unique(block.indices[part])) == len(block.indices[part])
                row = np.zeros(5)
                row[block.indices[part]] = block.data[part]
                np.testing.assert_array_equal(row, expected[block.row0 + i])
                assert block.totals[i] == row.sum()
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(adata.X, name), getattr(doubled(dtype), name))


def test_neighbouring_rows_share_memory(build: Callable[..., ad.AnnData]) -> None:
    adata = build()
    block = open_counts(adata).read(2, 9)
    assert np.shares_memory(block.data, adata.X.data)
    assert np.shares_memory(block.indices, adata.X.indices)


def test_wide_indices(x: np.ndarray) -> None:
    matrix = sparse.csr_matrix(x)
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    block = open_counts(ad.AnnData(matrix)).read(0, 23)
    assert block.indices.dtype == np.int32
    np.testing.assert_array_equal(block.indices, matrix.indices)


@pytest.mark.parametrize(
    ("part", "at", "value", "message"),
    [
        ("indices", -1, 11, "stores columns 0 to 11"),
        ("indices", 3, -1, "stores columns -1 to 10"),
        ("indptr", 5, 10**6, "its indptr does not fit 23 rows"),
        ("indptr", -1, 10**6, "its indptr does not fit 23 rows"),
        ("indptr", slice(2), 1, "its indptr does not fit 23 rows"),
    ],
)
def test_damaged_file(
    part: str, at: int | slice, value: int, message: str, build: Callable[..., ad.AnnData], tmp_path: Path
) -> None:
    build(raw=False, layer=False).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        changed = file[f"X/{part}"][...]
        changed[at] = value
        file[f"X/{part}"][...] = changed
    with pytest.raises(ValueError, match=rf"X of .*a\.h5ad is damaged.*{message}"):
        open_counts(tmp_path / "a.h5ad")


@pytest.mark.parametrize(
    ("chunk", "piece", "ends"),
    [(1, 8, [8, 16, 20]), (3, 8, [6, 12, 18, 20]), (5, 4, [5, 10, 15, 20]), (23, 4, [4, 8, 12, 16, 20])],
    ids=["chunks of a row", "small chunks", "chunks larger than a piece", "one huge chunk"],
)
def test_dense_pieces_end_where_chunks_end(
    chunk: int, piece: int, ends: list[int], x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scfm.read._rows.PIECE", piece * 11)
    ad.AnnData(x).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        attrs = dict(file["X"].attrs)
        del file["X"]
        file.create_dataset("X", data=x, chunks=(chunk, 11)).attrs.update(attrs)
    read, getitem = [], h5py.Dataset.__getitem__

    def spy(self: h5py.Dataset, *args: Any, **kwargs: Any) -> Any:
        read.append(args[0])
        return getitem(self, *args, **kwargs)

    with open_counts(tmp_path / "a.h5ad") as source:
        monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
        np.testing.assert_array_equal(source.read(2, 20).totals, x[2:20].sum(axis=1))
    assert [part.stop for part in read] == ends


def test_a_matrix_by_columns_is_converted_only_when_it_is_read(build: Callable[..., ad.AnnData]) -> None:
    source = open_counts(build("csc"))
    assert source._matrix._csr is None
    source.read(0, 1)
    assert source._matrix._csr is not None


def test_blocks_in_another_thread(source: CountSource, x: np.ndarray) -> None:
    totals: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: totals.extend(block.totals for block in source.blocks(2, max_nnz=9)))
    thread.start()
    for _ in range(50):
        assert source.obs_names[-1] == "cell22"
        assert len(source.obs) == len(source.read(0, 23).totals) == 23
    thread.join(timeout=30)
    np.testing.assert_array_equal(np.concatenate(totals), x.sum(axis=1))


@pytest.mark.parametrize("n_obs", [0, 1, 255, 256, 257, 700, 768, 769, 5000])
def test_the_sample_is_spread(n_obs: int) -> None:
    spans = spread(n_obs)
    cells = [cell for start, stop in spans for cell in range(start, stop)]
    assert len(spans) <= 3
    assert all(0 < stop - start <= 256 for start, stop in spans)
    assert cells == sorted(set(cells))
    assert len(cells) == min(n_obs, 768)
    if n_obs:
        assert {cells[0], cells[-1]} == {0, n_obs - 1}


def test_rows_of_a_view_are_read_in_short_stretches() -> None:
    assert _spans(np.array([3, 4, 20, 37, 60])) == [(3, 38), (60, 61)]
    assert _spans(np.arange(5000)) == [(0, 2048), (2048, 4096), (4096, 5000)]


def test_repr(build: Callable[..., ad.AnnData]) -> None:
    assert repr(open_counts(build(), layer="counts")) == ("CountSource(AnnData: layers['counts'], 23 cells × 11 genes)")
