"""Verbs on files of other programs, which are never written into: their results go to a new .h5ad file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scfm
from scfm.cli import main
from tests.read.foreign import GENES, write_loom, write_mtx, write_tenx
from tests.rounding import close

if TYPE_CHECKING:
    from pathlib import Path

    from scfm.model import FoundationModel


@pytest.fixture(scope="module")
def model() -> FoundationModel:
    return scfm.model.load("scfm-mini")


@pytest.fixture(scope="module")
def cells(model: FoundationModel) -> ad.AnnData:
    ids = model.vocabulary.genes[::40][:200]
    var = pd.DataFrame({"gene_ids": ids, "feature_types": GENES}, index=[f"name{i}" for i in range(200)])
    counts = np.random.default_rng(0).poisson(1, (12, 200)).astype("float32")
    return ad.AnnData(sparse.csr_matrix(counts), obs=pd.DataFrame(index=[f"AAC{i}-1" for i in range(12)]), var=var)


@pytest.fixture(params=["cells.h5", "folder", "cells.loom"])
def path(request: pytest.FixtureRequest, cells: ad.AnnData, tmp_path: Path) -> Path:
    place = tmp_path / request.param
    if place.suffix == ".h5":
        return write_tenx(place, cells)
    return write_loom(place, cells) if place.suffix else write_mtx(place, cells, version=3)


def test_embeddings_go_to_an_h5ad(path: Path, cells: ad.AnnData, model: FoundationModel, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in (path.iterdir() if path.is_dir() else [path])}
    expected = model.embed(cells)
    close(model.embed(path), expected)
    for wrong in ("out.h5", "out.zarr", path.with_suffix(".new").name):
        with pytest.raises(ValueError, match=r"must end in \.h5ad"):
            scfm.tl.embed(path, model, out=tmp_path / wrong)
    out = scfm.tl.embed(path, model, out=tmp_path / "out.h5ad")
    written = ad.read_h5ad(out)
    close(written.obsm["X_scfm_mini"], expected)
    np.testing.assert_array_equal(written.X.toarray(), cells.X.toarray())
    assert written.obs_names.tolist() == cells.obs_names.tolist()
    assert written.var["gene_ids"].tolist() == cells.var["gene_ids"].tolist()
    assert {file: file.read_bytes() for file in before} == before


def test_a_column_that_cannot_be_stored_is_told_first(
    cells: ad.AnnData, model: FoundationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tenx(tmp_path / "a.h5", cells)
    with h5py.File(path, "a") as file:
        file["matrix/features/pairs"] = np.zeros(cells.n_vars, [("a", "i4"), ("b", "i4")])
    monkeypatch.setattr("scfm.model.session.Session.run", None)
    with pytest.raises(ValueError, match=r"var\['pairs'\] of .*a\.h5 cannot be written to an \.h5ad file"):
        scfm.tl.embed(path, model, out=tmp_path / "out.h5ad")


def test_genes_are_matched_in_them(path: Path, cells: ad.AnnData, model: FoundationModel) -> None:
    assert scfm.pp.match_genes(path, model) == scfm.pp.match_genes(cells, model)
    assert scfm.pp.match_genes(path, model).matched == 200


def test_means_of_genes_go_there_too(path: Path, cells: ad.AnnData, model: FoundationModel, tmp_path: Path) -> None:
    out = scfm.tl.embed(path, model, pooling="gene", out=tmp_path / "out.h5ad")
    close(ad.read_h5ad(out).varm["X_scfm_mini"], model.embed(cells, pooling="gene"))


@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_a_store_of_them(path: Path, cells: ad.AnnData, model: FoundationModel, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    with pytest.raises(ValueError, match=r"into_source=True cannot write to .*cells|folder"):
        scfm.tl.embed_store(path, model, store, into_source=True)
    scfm.tl.embed_store([path, path], model, store, shard_rows=5)
    expected = model.embed(cells)
    close(ad.read_zarr(store).obsm["X_scfm_mini"], np.concatenate([expected, expected]))
    assert main(["merge", str(store), str(path)]) == 1


def test_the_command_line_takes_them(path: Path, cells: ad.AnnData, model: FoundationModel, tmp_path: Path) -> None:
    assert main(["embed", str(path), "--model", "scfm-mini", "--out", str(tmp_path / "out.h5ad")]) == 0
    close(ad.read_h5ad(tmp_path / "out.h5ad").obsm["X_scfm_mini"], model.embed(cells))


def test_what_a_file_holds_says_how_its_copy_ends(cells: ad.AnnData, model: FoundationModel, tmp_path: Path) -> None:
    cells.write_h5ad(tmp_path / "hdf5.zarr")
    with pytest.raises(ValueError, match=r"must end in \.h5ad"):
        scfm.tl.embed(tmp_path / "hdf5.zarr", model, out=tmp_path / "out.zarr")
    out = scfm.tl.embed(tmp_path / "hdf5.zarr", model, out=tmp_path / "out.h5ad")
    close(ad.read_h5ad(out).obsm["X_scfm_mini"], model.embed(cells))
