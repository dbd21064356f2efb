"""Files of other programs give the same cells as scanpy reads from them, in blocks."""

from __future__ import annotations

import gzip
import re
import tempfile
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from scfm.read import is_anndata_file, open_container, open_counts
from scfm.read.convert import write_h5ad
from tests.read.foreign import ANTIBODY, GENES, write_loom, write_mtx, write_tenx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")


@pytest.fixture
def cells(x: np.ndarray) -> ad.AnnData:
    obs = pd.DataFrame({"n": np.arange(23), "donor": ["a", "b"] * 11 + ["a"]}, index=[f"AAC{i}-1" for i in range(23)])
    names = ["CD4", "CD8A", "CD19", "CD4", *[f"gene{i}" for i in range(7)]]
    var = pd.DataFrame(index=names).assign(
        gene_ids=[f"ENSG{i:011d}" for i in range(11)], feature_types=[GENES] * 9 + [ANTIBODY] * 2
    )
    return ad.AnnData(sparse.csr_matrix(x), obs=obs, var=var)


def dense(data: Any, **options: Any) -> tuple[np.ndarray, pd.DataFrame, pd.DataFrame]:
    """All cells, read in blocks of five, obs and var."""
    with open_counts(data, **options) as source:
        parts = [
            sparse.csr_array((block.data, block.indices, block.indptr), shape=(block.n_cells, source.n_vars)).toarray()
            for block in source.blocks(5, max_nnz=20)
        ]
        assert source.names(2, 4).tolist() == source.obs_names[2:4].tolist()
        return np.concatenate(parts), source.obs, source.var


def check_equal(found: tuple[np.ndarray, pd.DataFrame, pd.DataFrame], expected: ad.AnnData) -> None:
    np.testing.assert_array_equal(found[0], expected.X.toarray())
    pd.testing.assert_index_equal(found[1].index, expected.obs_names)
    pd.testing.assert_frame_equal(found[2][expected.var.columns], expected.var)


def test_cell_ranger_3(cells: ad.AnnData, tmp_path: Path) -> None:
    path = write_tenx(tmp_path / "a.h5", cells)
    found = dense(path)
    check_equal(found, sc.read_10x_h5(path, gex_only=False))
    assert list(found[2].columns) == ["feature_types", "genome", "gene_ids"]


def test_cell_ranger_2(cells: ad.AnnData, tmp_path: Path) -> None:
    path = write_tenx(tmp_path / "a.h5", cells, "hg19")
    check_equal(dense(path), sc.read_10x_h5(path))
    write_tenx(path, cells[::-1].copy(), "mm10")
    found = dense(path, modality="mm10")
    check_equal(found, sc.read_10x_h5(path, genome="mm10"))
    assert set(found[2]["genome"]) == {"mm10"}
    with pytest.raises(ValueError, match=r"a\.h5 needs modality=\. Its genomes: 'hg19', 'mm10'"):
        open_counts(path)


def test_probes_have_the_ids_of_their_genes(cells: ad.AnnData, tmp_path: Path) -> None:
    with h5py.File(write_tenx(tmp_path / "a.h5", cells), "r+") as file:
        features = file["matrix/features"]
        features["gene_id"], features["filtered_probes"] = features["id"][()], np.ones(11, bool)
        del features["id"]
        features["id"] = np.array([f"p{i}" for i in range(11)], "S")
    var = dense(tmp_path / "a.h5")[2]
    assert var["gene_ids"].tolist() == cells.var["gene_ids"].tolist()
    assert var["probe_ids"].iloc[3] == "p3"
    assert var["filtered_probes"].dtype == bool


@pytest.mark.parametrize("by_gene", [False, True])
@pytest.mark.parametrize("version", [2, 3])
def test_matrix_market(
    version: int, by_gene: bool, cells: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scfm.read._matrix_market.PIECE", 7)
    folder = write_mtx(tmp_path / "mtx", cells, version=version, by_gene=by_gene)
    expected = sc.read_10x_mtx(folder, make_unique=False, gex_only=False)
    check_equal(dense(folder), expected)
    (matrix,) = folder.glob("matrix.mtx*")
    check_equal(dense(matrix), expected)


def test_matrices_with_prefixes(cells: ad.AnnData, tmp_path: Path) -> None:
    for number, prefix in enumerate(("GSM1_", "GSM2_")):
        write_mtx(tmp_path, cells[number:].copy(), version=3, prefix=prefix)
    with pytest.raises(
        ValueError, match=r"several matrices: GSM1_matrix\.mtx\.gz, GSM2_matrix\.mtx\.gz\. Pass the path"
    ):
        open_counts(tmp_path)
    np.testing.assert_array_equal(dense(tmp_path / "GSM2_matrix.mtx.gz")[0], cells.X[1:].toarray())


def test_a_matrix_market_file_leaves_nothing_behind(
    cells: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    folder = write_mtx(tmp_path / "mtx", cells, version=3)
    with open_counts(folder) as source:
        assert not any(temporary.iterdir())
        assert source.read(3, 5).totals.tolist() == cells.X[3:5].sum(axis=1).A1.tolist()
    assert not any(temporary.iterdir())


def test_a_matrix_without_entries(cells: ad.AnnData, tmp_path: Path) -> None:
    cells.X = sparse.csr_matrix(cells.shape)
    assert not dense(write_mtx(tmp_path / "mtx", cells, version=3))[0].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("coordinate", "array"), "is no sparse matrix of the Matrix Market format"),
        (lambda text: text.replace("integer", "complex"), "holds values of the kind 'complex'; counts are integer or"),
        (lambda text: text.replace("11 23 ", "11 24 "), "11 genes .rows. × 24 cells .columns., but the tables"),
        (lambda text: text.replace("11 23 ", "11 "), "is damaged: numbers of genes, cells and entries are missing"),
        (lambda text: text[: text.rindex("\n", 0, -1)], r"is damaged: it has \d+ instead of \d+ entries"),
        (lambda text: text + "12 1 1\n", "is damaged: it has entries beyond 11 genes and 23 cells"),
        (lambda text: text + "1 1 1\n", r"is damaged: it has more than \d+ entries"),
        (lambda text: re.sub(r"^(\d+ \d+ \d)$", r"1 \1", text, flags=re.M), "lines of more than gene, cell and value"),
        (lambda text: text[: text.rindex(" ") + 1] + "4294967301\n", "holds 4294967301; int32 is read"),
        (lambda text: text + "1 1 x\n", r"matrix\.mtx cannot be read"),
    ],
)
def test_a_damaged_matrix_market_file(
    change: Callable[[str], str], message: str, cells: ad.AnnData, tmp_path: Path
) -> None:
    file = write_mtx(tmp_path / "mtx", cells, version=2) / "matrix.mtx"
    file.write_text(change(file.read_text()))
    with pytest.raises(ValueError, match=message) as caught:
        open_counts(file.parent)
    assert str(file) in str(caught.value)


def test_odd_text_around_a_matrix(cells: ad.AnnData, tmp_path: Path) -> None:
    folder = write_mtx(tmp_path / "mtx", cells, version=2)
    expected = dense(folder)
    matrix, genes = folder / "matrix.mtx", folder / "genes.tsv"
    matrix.write_text(matrix.read_text().replace("\n", "\n%" + "1 2 3 " * 1000 + "\n", 1))
    lines = genes.read_text().splitlines()
    lines[2], lines[5] = (line.replace("\t", '\t"') for line in (lines[2], lines[5]))  # a quote that is not closed
    lines[7] = "\t".join(f'"{word}"' for word in lines[7].split("\t"))
    genes.write_text("\n".join(lines))
    found = dense(folder)
    np.testing.assert_array_equal(found[0], expected[0])
    pd.testing.assert_frame_equal(found[2], expected[2])


def test_a_compressed_matrix_that_is_cut_off(cells: ad.AnnData, tmp_path: Path) -> None:
    file = write_mtx(tmp_path / "mtx", cells, version=3) / "matrix.mtx.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"matrix\.mtx\.gz cannot be read"):
        open_counts(file.parent)
    (file.parent / "barcodes.tsv.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs a table beside it: barcodes\.tsv or barcodes\.tsv\.gz"):
        open_counts(file.parent)


def test_loom(cells: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scfm.read._rows.PIECE", 50)
    cells.layers["spliced"] = cells.X * 2
    path = write_loom(tmp_path / "a.loom", cells)
    found = dense(path)
    check_equal(found, cells)
    pd.testing.assert_frame_equal(found[1], cells.obs[found[1].columns])
    assert set(found[1]) == {"n", "donor"}
    np.testing.assert_array_equal(dense(path, layer="spliced")[0], found[0] * 2)


def test_a_loom_without_names_of_cells(cells: ad.AnnData, tmp_path: Path) -> None:
    with h5py.File(write_loom(tmp_path / "a.loom", cells), "r+") as file:
        del file["col_attrs/CellID"]
    assert dense(tmp_path / "a.loom")[1].index.tolist() == [str(i) for i in range(23)]


@pytest.mark.parametrize(("name", "line"), [("genes.tsv", b"a\tb\tc\n"), ("barcodes.tsv", b"a\tb\n")])
def test_a_line_with_more_columns_than_the_first(name: str, line: bytes, tmp_path: Path, cells: ad.AnnData) -> None:
    folder = write_mtx(tmp_path / "mtx", cells, version=2)
    file = folder / name
    lines = file.read_bytes().splitlines(keepends=True)
    n_columns = lines[0].count(b"\t") + 1
    file.write_bytes(b"".join([*lines[:1], line, *lines[2:]]))
    with pytest.raises(
        ValueError, match=rf"{name} is damaged: line 2 has {n_columns + 1} columns, and the first line {n_columns}\."
    ):
        dense(folder)


@pytest.mark.parametrize("kind", ["h5", "mtx", "loom"])
def test_they_become_h5ad(kind: str, cells: ad.AnnData, tmp_path: Path) -> None:
    cells.var_names_make_unique()
    path = tmp_path / f"a.{kind}"
    if kind == "loom":
        cells.layers["spliced"] = cells.X * 2
        write_loom(path, cells)
    else:
        write_tenx(path, cells) if kind == "h5" else write_mtx(path, cells, version=3)
    assert not is_anndata_file(path)
    write_h5ad(path, tmp_path / "a.h5ad", None)
    assert is_anndata_file(tmp_path / "a.h5ad")
    written = ad.read_h5ad(tmp_path / "a.h5ad")
    with open_container(path, None) as container:
        for found, expected in ((written.obs, container.obs), (written.var, container.var)):
            pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_column_type=False)
        assert list(written.layers) == container.layers
    np.testing.assert_array_equal(written.X.toarray(), cells.X.toarray())
    for name in cells.layers:
        np.testing.assert_array_equal(written.layers[name].toarray(), cells.layers[name].toarray())


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.txt"])
def test_tables_of_text_are_to_be_loaded(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"gene,cell") if name.endswith("gz") else b"gene,cell")
    with pytest.raises(ValueError, match=r"is a table of text.*anndata\.io\.read_csv\('.*'\), take adata\.T"):
        open_counts(tmp_path / name)


@pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_mudata_in_a_mudata(on_disk: bool, cells: ad.AnnData, tmp_path: Path) -> None:
    cells.var_names_make_unique()
    data: Any = md.MuData({"batch1": md.MuData({"rna": cells})})
    if on_disk:
        with h5py.File(tmp_path / "a.h5mu", "w") as file:
            file.create_group("mod/batch1/mod/rna")
        data = tmp_path / "a.h5mu"
    with pytest.raises(ValueError, match=r"'batch1' of .* is a MuData itself, with the modalities 'rna'\. Pass that"):
        open_counts(data, modality="batch1")


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
def test_tables_without_their_encoding(cells: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "old.h5ad"
    cells.var_names_make_unique()
    cells.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for element in (file, file["obs"], file["var"]):
            del element.attrs["encoding-type"], element.attrs["encoding-version"]
    for data in (path, ad.read_h5ad(path)):
        with open_counts(data) as source:
            assert source.var.index.tolist() == cells.var_names.tolist()
            assert source.obs["donor"].tolist() == cells.obs["donor"].tolist()


def test_categories_of_anndata_0_7(cells: ad.AnnData, tmp_path: Path) -> None:
    cells.var_names_make_unique()
    cells.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        obs = file["obs"]
        obs.attrs["encoding-version"] = "0.1.0"
        del obs["donor"]
        ad.io.write_elem(obs, "donor", np.array([0, 1] * 11 + [-1], "i1"))
        ad.io.write_elem(obs.create_group("__categories"), "donor", np.array(["a", "b"], object))
        obs["donor"].attrs["categories"] = obs["__categories/donor"].ref
    with open_counts(tmp_path / "a.h5ad") as source:
        assert source.column("donor").iloc[:3].tolist() == ["a", "b", "a"]
        assert source.obs["donor"].isna().sum() == 1


def test_a_file_that_lacks_a_part_is_named(cells: ad.AnnData, tmp_path: Path) -> None:
    cells.var_names_make_unique()
    cells.write_h5ad(tmp_path / "a.h5ad")
    for part in ("X/indptr", "var/_index"):
        with h5py.File(tmp_path / "a.h5ad", "r+") as file:
            del file[part]
        with pytest.raises(ValueError, match=r"a\.h5ad cannot be read") as caught:
            open_counts(tmp_path / "a.h5ad")
        assert isinstance(caught.value.__cause__, KeyError)
