"""Embedding several files at once: each as if it were alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

import scfm
from scfm.cli import main
from scfm.model.arguments import Arguments
from scfm.testing import write_transcriptformer
from tests.rounding import close

if TYPE_CHECKING:
    from pathlib import Path

KEY = "X_scfm_mini"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files with other genes, gene keys and orders; names of cells occur twice."""
    cells = scfm.datasets.pbmc68k()
    first, second = cells[:150].copy(), cells[100:300, ::-2].copy()
    second.var["symbol"] = second.var_names
    second.var_names = [f"gene{i}" for i in range(second.n_vars)]
    first.write_h5ad(tmp_path / "a.h5ad")
    second.write_h5ad(tmp_path / "b.h5ad")
    return [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]


@pytest.fixture
def alone(files: list[Path]) -> np.ndarray:
    model = scfm.model.load("scfm-mini")
    return np.concatenate([model.embed(file, device="cpu") for file in files])


def test_the_array(files: list[Path], alone: np.ndarray) -> None:
    model = scfm.model.load("scfm-mini")
    together = model.run(files, Arguments(device="cpu"))
    np.testing.assert_array_equal(together.values, alone)
    assert list(together.names[148:152]) == [
        *ad.read_h5ad(files[0]).obs_names[-2:],
        *ad.read_h5ad(files[1]).obs_names[:2],
    ]
    params = together.params
    assert params["n_cells"] == 350
    assert params["files"] == {"path": [str(file) for file in files], "n_obs": [150, 200]}
    assert params["genes"]["gene_key"] == ["index", "symbol"]
    assert params["genes"]["n_genes"][0] > params["genes"]["n_genes"][1]
    assert params["matrix"] == "X"
    with pytest.raises(ValueError, match="pooling='gene' takes one file.*2 files were given"):
        model.embed(files, pooling="gene")


@pytest.mark.parametrize("shard_rows", [64, None])
def test_the_store(shard_rows: int | None, files: list[Path], alone: np.ndarray, tmp_path: Path) -> None:
    call: dict[str, Any] = {
        "model": "scfm-mini",
        "out": tmp_path / "emb.zarr",
        "device": "cpu",
        "shard_rows": shard_rows,
    }
    out = scfm.tl.embed_store(str(tmp_path / "[ab].h5ad"), shard="1/2", **call)
    scfm.tl.embed_store(files, **call)
    with pytest.warns(UserWarning, match="names are not unique"):
        adata = ad.read_zarr(out)
    close(adata.obsm[KEY], alone)
    assert adata.obs["file"].astype(str).tolist() == [str(files[0])] * 150 + [str(files[1])] * 200
    assert list(adata.uns["scfm_mini"]["params"]["files"]["n_obs"]) == [150, 200]
    assert list(adata.uns["scfm_mini"]["params"]["genes"]["gene_key"]) == ["index", "symbol"]
    with pytest.raises(FileExistsError, match=r"was made of a source that was another.* it was 2 files, now it is 1"):
        scfm.tl.embed_store(files[0], **call)
    with pytest.raises(FileExistsError, match="was made of a source that was another"):
        scfm.tl.embed_store(files[::-1], **call)


def test_into_each_file(files: list[Path], alone: np.ndarray, tmp_path: Path) -> None:
    call: dict[str, Any] = {"model": "scfm-mini", "out": tmp_path / "emb.zarr", "device": "cpu", "shard_rows": 64}
    for _ in range(2):  # the second time there is nothing left to do
        scfm.tl.embed_store(files, into_source=True, **call)
    for file, part in zip(files, np.split(alone, [150]), strict=True):
        adata = ad.read_h5ad(file)
        close(adata.obsm[KEY], part)
        assert list(adata.uns["scfm_mini"]["params"]["files"]["n_obs"]) == [150, 200]


def test_the_command_line(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCFM_VERBOSITY", "warning")  # what a command sets stays set
    out = tmp_path / "emb.zarr"
    call = ["--model", "scfm-mini", "--out", str(out), "--device", "cpu"]
    assert main(["embed-store", str(tmp_path / "?.h5ad"), *call]) == 0
    assert "350 of 350 cells" in capsys.readouterr().out
    for file in files:
        assert main(["merge", str(out), str(file)]) == 0
    np.testing.assert_array_equal(
        ad.read_h5ad(files[1]).obsm[KEY], np.asarray(zarr.open_array(out / f"obsm/{KEY}")[150:350])
    )
    other = ad.read_h5ad(files[1])[:, :1]
    other.obs_names = pd.Index([f"x{i}" for i in range(200)])
    other.copy().write_h5ad(tmp_path / "other.h5ad")
    capsys.readouterr()
    assert main(["merge", str(out), str(tmp_path / "other.h5ad")]) == 1
    assert "does not hold the cells of" in capsys.readouterr().err


def test_plates_with_cells_of_the_same_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = scfm.model.load("scfm-mini")
    cells, wells = scfm.datasets.pbmc68k(), [f"A{number}" for number in range(1, 13)]
    paths, alone = [tmp_path / "plate1.h5ad", tmp_path / "plate2.h5ad"], []
    for path, first in zip(paths, (0, 100), strict=True):
        plate = cells[first : first + 12].copy()
        plate.obs_names = wells
        plate.write_h5ad(path)
        alone.append(model.embed(path))
    original = paths[1].read_bytes()
    out = scfm.tl.embed_store(paths, model, tmp_path / "out.zarr", into_source=True)
    for path, expected in zip(paths, alone, strict=True):
        close(ad.read_h5ad(path).obsm[KEY], expected)
    assert main(["merge", str(out), str(paths[1])]) == 0
    close(ad.read_h5ad(paths[1]).obsm[KEY], alone[1])
    copy = tmp_path / "copy.h5ad"
    copy.write_bytes(original)
    assert main(["merge", str(out), str(copy)]) == 1
    assert "have the names of those of" in capsys.readouterr().err
    assert copy.read_bytes() == original


@pytest.mark.parametrize("store", [False, True])
def test_an_error_of_matching_names_the_file(store: bool, files: list[Path], tmp_path: Path) -> None:
    adata = ad.read_h5ad(files[1])
    adata.var = pd.DataFrame(index=[f"ENSMUSG{number:011d}" for number in range(adata.n_vars)])
    adata.write_h5ad(files[1])
    model = scfm.model.load("scfm-mini")
    with pytest.raises(ValueError, match=r"b\.h5ad: No gene of the data is known"):
        scfm.tl.embed_store(files, model, tmp_path / "out.zarr") if store else model.embed(files)


def test_an_error_names_the_file(files: list[Path]) -> None:
    var = ad.read_h5ad(files[1]).var
    big = ad.AnnData(np.ones((2000, len(var)), np.float32), var=var)
    big.X[1200, 3] = -1  # not in the sample that is looked at
    big.write_h5ad(files[1])
    with pytest.raises(ValueError, match=r"b\.h5ad: Cell 1200 holds the value -1"):
        scfm.model.load("scfm-mini").embed(files)


def test_annotation_belongs_to_its_file(tmp_path: Path) -> None:
    """Assays are those of the file, and a first pass over the totals is made for each file."""
    model = scfm.model.load(write_transcriptformer(tmp_path / "model", seq_len=60))
    genes = list(model.vocabulary.genes)[:40]
    rng = np.random.default_rng(0)
    paths = []
    for name, assay in (("a", "10x 3' v3"), ("b", "Smart-seq v4")):
        counts = rng.poisson(1.0, (60, 40)).astype(np.float32)
        counts[7] *= 30
        adata = ad.AnnData(counts, obs=pd.DataFrame({"assay": [assay] * 60}, index=[f"{name}{i}" for i in range(60)]))
        adata.var_names = genes
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        paths.append(tmp_path / f"{name}.h5ad")
    with pytest.warns(UserWarning, match="left out"):
        alone = np.concatenate([model.embed(path, filter_outliers=3.0, device="cpu") for path in paths])
    with pytest.warns(UserWarning, match="2 of 120 cells were left out"):
        together = model.embed(paths, filter_outliers=3.0, device="cpu")
    np.testing.assert_array_equal(together, alone)
    assert np.isnan(together[[7, 67]]).all()
