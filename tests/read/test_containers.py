"""Every container gives the same rows, totals, names and genes."""

from __future__ import annotations

import hashlib
import itertools
import pathlib
import stat
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from scfm.read import open_counts
from scfm.read.arrays import H5Array

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scfm.read import CountSource

# what anndata says when it writes, and what mudata says about its own plans
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*zarr v[23]:UserWarning", "ignore:Consolidated metadata:UserWarning", "ignore:From 0.4:FutureWarning"
)

ON_DISK = ("csr", "csr_array", "dense")
MEMORY = (*ON_DISK, "csc", "csc_array", "fortran")


def densified(source: CountSource, **options: Any) -> np.ndarray:
    """All rows of a source, checking the promises of a block on the way."""
    out = np.zeros((source.n_obs, source.n_vars))
    row = options.get("start", 0)
    for block in source.blocks(**options):
        assert block.row0 == row
        assert block.indptr.dtype == np.int64
        assert block.indptr[0] == 0
        assert block.indptr[-1] == len(block.indices) == len(block.data)
        assert block.indices.dtype == np.int32
        assert block.totals.dtype == np.float64
        for i, (a, b) in enumerate(itertools.pairwise(block.indptr)):
            assert len(set(block.indices[a:b].tolist())) == b - a
            out[row + i, block.indices[a:b]] = block.data[a:b]
        np.testing.assert_array_equal(block.totals, out[row : row + block.n_cells].sum(axis=1))
        row += block.n_cells
    assert row == (options.get("stop") or source.n_obs)
    return out


def muon(adata: ad.AnnData) -> md.MuData:
    other = ad.AnnData(np.ones((4, 2), dtype=np.float32), obs=pd.DataFrame(index=[f"other{i}" for i in range(4)]))
    return md.MuData({"rna": adata, "adt": other})


def stored(kind: str, adata: ad.AnnData, tmp_path: Path) -> tuple[Any, str | None]:
    """Write `adata` and give back what is passed to `open_counts`, and the modality."""
    h5ad, h5mu, store = tmp_path / "a.h5ad", tmp_path / "a.h5mu", tmp_path / "a.zarr"
    if "mudata" in kind:
        if kind == "mudata":
            return muon(adata), "rna"
        if kind == "mudata zarr path":
            muon(adata).write_zarr(store)
            return store, "rna"
        muon(adata).write_h5mu(h5mu)
        return (md.read_h5mu(h5mu, backed="r") if kind == "mudata backed" else h5mu), "rna"
    if "zarr" in kind:
        with ad.settings.override(zarr_write_format=2 if "v2" in kind else 3):
            adata.write_zarr(store)
        return (ad.read_zarr(store) if kind == "zarr read" else store), None
    adata.write_h5ad(h5ad)
    if kind == "read":
        return ad.read_h5ad(h5ad), None
    return (str(h5ad) if kind == "path" else ad.read_h5ad(h5ad, backed=kind.removeprefix("backed "))), None


KINDS = [
    *itertools.product(["read", "mudata"], MEMORY),
    *itertools.product(["backed r", "backed r+", "path", "mudata path", "mudata backed"], ON_DISK),
    *itertools.product(["zarr read", "zarr v2", "zarr v3"], ["csr", "dense"]),
    ("mudata zarr path", "csr"),
]


@pytest.mark.parametrize(("kind", "form"), KINDS)
def test_containers_agree(
    kind: str,
    form: str,
    build: Callable[..., ad.AnnData],
    x: np.ndarray,
    raw_x: np.ndarray,
    layer_x: np.ndarray,
    tmp_path: Path,
) -> None:
    adata = build(form)
    data, modality = stored(kind, adata, tmp_path)
    for options, expected, var, matrix in (
        ({}, x, adata.var, "X"),
        ({"use_raw": False}, x, adata.var, "X"),
        ({"use_raw": True}, raw_x, adata.raw.var, "raw.X"),
        ({"prefer_raw": True}, raw_x, adata.raw.var, "raw.X"),
        ({"layer": "counts"}, layer_x, adata.var, "layers['counts']"),
    ):
        with open_counts(data, modality=modality, **options) as source:
            assert source.matrix == matrix
            assert (source.n_obs, source.n_vars) == expected.shape
            np.testing.assert_array_equal(densified(source, rows=5), expected)
            assert source.read(1, 3).data.dtype == np.float32
            pd.testing.assert_frame_equal(source.var, var)
            pd.testing.assert_frame_equal(source.obs, adata.obs)
            pd.testing.assert_index_equal(source.obs_names, adata.obs_names)
    if getattr(data, "isbacked", False):
        assert data.file.is_open if isinstance(data, ad.AnnData) else data.mod["rna"].file.is_open
        data.file.close()


SELECTIONS: dict[str, tuple[Any, Any]] = {
    "rows in a row": (slice(3, 17), slice(None)),
    "backwards": (slice(None, None, -1), slice(None)),
    "every third": (slice(1, None, 3), slice(2, 9)),
    "shuffled": (np.random.default_rng(0).permutation(23), slice(None)),
    "twice": (np.array([5, 5, 2, 22, 2]), slice(None)),
    "negative": (np.array([-1, -3, 4]), np.array([-1, 0])),
    "mask": (np.arange(23) % 4 == 1, np.arange(11) % 2 == 0),
    "genes": (slice(None), np.array([9, 1, 3, 4])),
    "genes twice": (np.array([4, 2, 3]), np.array([9, 1, 9, 4])),
    "genes backwards": (slice(2, 9), slice(None, None, -1)),
    "names": ([f"cell{i}" for i in (9, 4, 5)], [f"gene{i}" for i in (10, 2)]),
    "one": (6, 5),
    "nothing": (np.array([], dtype=int), slice(None)),
    "no genes": (slice(None), np.array([], dtype=int)),
}


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize(
    ("backed", "form", "apart"),
    [
        *((False, form, False) for form in ("csr", "csr_array", "csc", "dense")),
        *itertools.product([True], ["csr", "dense"], [False, True]),
    ],
)
def test_views(
    selection: str,
    backed: bool,
    form: str,
    apart: bool,
    build: Callable[..., ad.AnnData],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if apart:
        monkeypatch.setattr("scfm.read._rows.GAP", 0)
        monkeypatch.setattr("scfm.read._rows.SPAN", 3)
        monkeypatch.setattr("scfm.read._rows.PIECE", 25)
    rows, cols = SELECTIONS[selection]
    adata = build(form)
    expected = adata[rows, cols].copy()
    if backed:
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    view = adata[rows, cols]
    for options, matrix in (
        ({"use_raw": False}, expected.X),
        ({"use_raw": True}, expected.raw.X),
        ({"layer": "counts"}, expected.layers["counts"]),
    ):
        dense = matrix.toarray() if sparse.issparse(matrix) else matrix
        for blocks in ({"rows": 4}, {"rows": 100, "max_nnz": 9}):
            source = open_counts(view, **options)
            np.testing.assert_array_equal(densified(source, **blocks), dense)
        np.testing.assert_array_equal(source.read(0, source.n_obs).totals, dense.sum(axis=1))
        pd.testing.assert_frame_equal(source.var, expected.raw.var if options.get("use_raw") else expected.var)
        pd.testing.assert_frame_equal(source.obs, expected.obs)
        pd.testing.assert_index_equal(source.obs_names, expected.obs_names)
    assert view.is_view
    if backed:
        adata.file.close()


def test_a_view_of_a_view(build: Callable[..., ad.AnnData], x: np.ndarray) -> None:
    view = build()[::-1][[3, 1, 8], 2:8][[2, 0]]
    np.testing.assert_array_equal(densified(open_counts(view, use_raw=False)), x[::-1][[8, 3], 2:8])


@pytest.mark.parametrize("kind", ["csr", "dense"])
@pytest.mark.parametrize("package", ["h5py", "zarr"])
def test_matrix_of_a_file_inside_an_anndata(
    kind: str, package: str, build: Callable[..., ad.AnnData], x: np.ndarray, tmp_path: Path
) -> None:
    adata = build(kind)
    root = h5py.File(tmp_path / "a.h5", "w") if package == "h5py" else zarr.open_group(tmp_path / "a.zarr", mode="w")
    ad.io.write_elem(root, "X", adata.X)
    lazy = ad.AnnData(ad.io.sparse_dataset(root["X"]) if kind == "csr" else root["X"], obs=adata.obs, var=adata.var)
    np.testing.assert_array_equal(densified(open_counts(lazy)), x)
    np.testing.assert_array_equal(densified(open_counts(lazy[[4, 1, 2]])), x[[4, 1, 2]])
    if package == "h5py":
        root.close()


def test_layer_added_behind_consolidated_metadata(
    build: Callable[..., ad.AnnData], layer_x: np.ndarray, tmp_path: Path
) -> None:
    store = tmp_path / "a.zarr"
    with ad.settings.override(zarr_write_format=2):
        build(layer=False).write_zarr(store)
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    ad.io.write_elem(root.require_group("layers"), "late", sparse.csr_matrix(layer_x))
    np.testing.assert_array_equal(densified(open_counts(store, layer="late")), layer_x)


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
def test_legacy_file(x: np.ndarray, tmp_path: Path) -> None:
    matrix = sparse.csr_matrix(x)
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        group = file.create_group("X")
        group.attrs["h5sparse_format"] = "csr"
        group.attrs["h5sparse_shape"] = x.shape
        for name in ("indptr", "indices", "data"):
            group[name] = getattr(matrix, name)
        for axis, length in (("obs", 23), ("var", 11)):
            file[axis] = np.array(
                [(f"{axis}{i}".encode(), i) for i in range(length)], dtype=[("index", "S9"), ("n", "i4")]
            )
    with open_counts(tmp_path / "old.h5ad") as source:
        np.testing.assert_array_equal(densified(source), x)
        assert source.obs_names[-1] == "obs22"
        assert source.var.loc["var4", "n"] == 4


@pytest.mark.parametrize("mode", ["path", "r", "r+"])
def test_file_is_neither_written_nor_closed(
    mode: str, build: Callable[..., ad.AnnData], x: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "a.h5ad"
    build().write_h5ad(path)
    before, changed = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
    if mode != "r+":
        path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    data = path if mode == "path" else ad.read_h5ad(path, backed=mode)
    with open_counts(data) as source:
        np.testing.assert_array_equal(densified(source), x)
    if mode == "path":
        with pytest.raises(Exception, match=r"(?i)not|closed|invalid"):
            source.read(0, 3)
    else:
        np.testing.assert_array_equal(data.X[2:4].toarray(), x[2:4])
        data.file.close()
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert mode == "r+" or path.stat().st_mtime_ns == changed  # opening it for writing touches it


def test_closed_backed_file_is_opened_again(build: Callable[..., ad.AnnData], x: np.ndarray, tmp_path: Path) -> None:
    build().write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    adata.file.close()
    np.testing.assert_array_equal(densified(open_counts(adata)), x)
    adata.file.close()


@pytest.mark.parametrize("layer", [None, "counts"])
def test_a_path_loads_no_other_matrix(
    layer: str | None, build: Callable[..., ad.AnnData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build().write_h5ad(tmp_path / "a.h5ad")
    read = []
    fill = H5Array.fill

    def spy(self: H5Array, out: np.ndarray, start: int) -> None:
        read.append((self._array.name, start, len(out)))
        fill(self, out, start)

    monkeypatch.setattr(H5Array, "fill", spy)
    with open_counts(tmp_path / "a.h5ad", layer=layer) as source:
        read.clear()
        block = source.read(9, 12)
    here = "/layers/counts" if layer else "/X"
    assert {name for name, *_ in read} == {f"{here}/indices", f"{here}/data"}
    assert len(read) == 2
    assert all(start > 0 and n == len(block.data) for _, start, n in read)


def test_caller_keeps_what_it_has(build: Callable[..., ad.AnnData], x: np.ndarray) -> None:
    for form in MEMORY:
        adata = build(form)
        kind, obs = type(adata.X), adata.obs.copy()
        source = open_counts(adata)
        densified(source)
        for frame in (source.obs, source.var):
            frame["new"] = 1
        assert type(adata.X) is kind
        assert adata.var.columns.tolist() == ["symbol"]
        pd.testing.assert_frame_equal(adata.obs, obs)
        np.testing.assert_array_equal(adata.X.toarray() if sparse.issparse(adata.X) else adata.X, x)


def test_pathlike(build: Callable[..., ad.AnnData], x: np.ndarray, tmp_path: Path) -> None:
    build().write_h5ad(tmp_path / "no suffix")
    for path in (str(tmp_path / "no suffix"), pathlib.PurePath(tmp_path / "no suffix")):
        with open_counts(path) as source:
            np.testing.assert_array_equal(densified(source), x)
