"""Tokenised datasets give the embeddings of the counts that they were made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

import scfm
from scfm.cli import main
from scfm.testing import write_geneformer, write_sccello, write_transcriptformer

if TYPE_CHECKING:
    from pathlib import Path

    from scfm.model import FoundationModel

N_OBS, N_GENES = 11, 50
WRITE: dict[str, Any] = {"V1": write_geneformer, "V2": write_geneformer, "scCello": write_sccello}


@pytest.fixture(scope="module", params=WRITE)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FoundationModel:
    folder = tmp_path_factory.mktemp("model") / request.param
    version = {} if request.param == "scCello" else {"version": int(request.param[1])}
    return scfm.model.load(WRITE[request.param](folder, n_genes=N_GENES, max_tokens=16, **version))


def cells() -> ad.AnnData:
    """Cells of all lengths, some longer than the model takes."""
    rng = np.random.default_rng(0)
    x = rng.poisson(np.linspace(0.02, 1, N_OBS)[:, None], (N_OBS, N_GENES)).astype(np.float32)
    x[:, 0] = 1
    adata = ad.AnnData(x)
    adata.var_names = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]
    adata.obs_names = [f"cell{i}" for i in range(N_OBS)]
    adata.obs["type"] = pd.Categorical(np.resize(["B", "T", None], N_OBS))
    adata.obs["depth"] = x.sum(axis=1)
    adata.obs["n_counts"] = x.sum(axis=1)
    return adata


@pytest.mark.parametrize("name", ["tokens", "a.dataset", "a.arrow", "a.parquet"])
def test_the_embedding_is_that_of_the_counts(model: FoundationModel, name: str, tmp_path: Path) -> None:
    adata = cells()
    path = scfm.tl.tokenize(adata, model, tmp_path / name, obs_columns=["type", "depth"])
    assert path == tmp_path / name
    found = scfm.tl.embed_tokenized(path, model)
    scfm.tl.embed(adata, model)
    key = f"X_{model.family}"
    np.testing.assert_array_equal(found.obsm[key], adata.obsm[key])
    assert found.obs_names.tolist() == adata.obs_names.tolist()
    assert found.obs["type"].isna().tolist() == adata.obs["type"].isna().tolist()
    assert found.obs["type"].dropna().tolist() == adata.obs["type"].dropna().tolist()
    np.testing.assert_array_equal(found.obs["depth"], adata.obs["depth"])
    assert found.obs["length"].max() == 16


def test_blocks_change_nothing(model: FoundationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pa.parquet.read_table(scfm.tl.tokenize(cells(), model, tmp_path / "a.parquet"))
    monkeypatch.setattr(scfm.settings, "block_rows", 3)
    cells().write_h5ad(tmp_path / "cells.h5ad")
    parts = pa.parquet.read_table(scfm.tl.tokenize(tmp_path / "cells.h5ad", model, tmp_path / "b.parquet"))
    assert whole.equals(parts)
    assert whole.schema.names == ["input_ids", "length", "cell_id"]


def test_the_layout_of_upstream(model: FoundationModel, tmp_path: Path) -> None:
    adata = cells()
    folder = scfm.tl.tokenize(adata, model, tmp_path / "tokens", max_tokens=9, compat="upstream", gene_key="index")
    state = json.loads((folder / "state.json").read_text())
    (data,) = state["_data_files"]
    with pa.memory_map(str(folder / data["filename"])) as file, pa.ipc.open_stream(file) as stream:
        table = stream.read_all()
    assert table.schema.field("input_ids").type == pa.list_(pa.int32())
    assert table.schema.field("length").type == pa.int64()
    assert table["length"].to_pylist() == [len(cell) for cell in table["input_ids"].to_pylist()]
    assert max(table["length"].to_pylist()) == 9
    about = json.loads(table.schema.metadata[b"scfm"])
    assert (about["model"], about["max_tokens"], about["compat"]) == (model.card.id, 9, "upstream")
    assert about["genes"]["matched"] == N_GENES


def test_cells_that_are_left_out_are_not_written(tmp_path: Path) -> None:
    folder, adata = write_sccello(tmp_path / "m", n_genes=N_GENES), cells()
    adata.X[4] = 0
    adata.obs["organism"] = np.resize(["Homo sapiens", "Mus musculus"], N_OBS)
    adata.obs["assay"], adata.obs["is_primary_data"] = "10x 3' v3", True
    path = scfm.tl.tokenize(adata, folder, tmp_path / "a.parquet", cellxgene_filter=True)
    table = pa.parquet.read_table(path).to_pandas()
    assert table["cell_id"].tolist() == adata.obs_names[::2].tolist()
    assert table.set_index("cell_id")["length"]["cell4"] == 1  # <cls> alone


def test_no_weights_are_needed(tmp_path: Path) -> None:
    folder = write_geneformer(tmp_path / "m", n_genes=N_GENES)
    (folder / "model.safetensors").unlink()
    assert len(pa.parquet.read_table(scfm.tl.tokenize(cells(), folder, tmp_path / "a.parquet"))) == N_OBS


def test_several_files(model: FoundationModel, tmp_path: Path) -> None:
    adata = cells()
    for i, part in enumerate((adata[:5], adata[5:, ::-1])):
        part.write_h5ad(tmp_path / f"{i}.h5ad")
    path = scfm.tl.tokenize(str(tmp_path / "*.h5ad"), model, tmp_path / "a.parquet", obs_columns=["type"])
    whole = scfm.tl.tokenize(adata, model, tmp_path / "b.parquet", obs_columns=["type"])
    assert pa.parquet.read_table(path).equals(pa.parquet.read_table(whole))


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "column": ({"obs_columns": ["no"]}, KeyError, "obs_columns: 'no' is not a column of obs; found .*'depth'"),
    "taken": ({"obs_columns": ["length"]}, ValueError, "'length'.* cannot be written: the tokens have a column"),
    "names": ({"obs_columns": ["cell_id"]}, ValueError, "'cell_id' is the column of cell names"),
    "mixed": ({"obs_columns": ["mixed"]}, ValueError, "'mixed'.* cannot be written: "),
    "there": ({"out": "there"}, FileExistsError, "there exists already; choose another name, or pass overwrite=True"),
    "option": ({"clip_counts": 3}, TypeError, "'clip_counts' is no option"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_call_leaves_nothing(kind: str, tmp_path: Path) -> None:
    arguments, error, match = WRONG[kind]
    adata = cells()
    adata.obs["length"], adata.obs["cell_id"] = 1, 2
    adata.obs["mixed"] = [1, "a", *range(N_OBS - 2)]
    (tmp_path / "there").mkdir()
    given = {"data": adata, "model": "scfm-mini", "out": "out", "gene_key": None} | arguments
    model = write_geneformer(tmp_path / "m", n_genes=N_GENES)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=match):
        scfm.tl.tokenize(**given | {"model": model, "out": tmp_path / given["out"]})
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_reads_counts(tmp_path: Path) -> None:
    folder = write_transcriptformer(tmp_path / "tf")
    with pytest.raises(TypeError, match="tf reads counts, .*; these families read ranked genes: geneformer, "):
        scfm.tl.tokenize(cells(), folder, tmp_path / "out")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, source, out = write_geneformer(tmp_path / "m", n_genes=N_GENES), tmp_path / "in.h5ad", tmp_path / "tokens"
    cells().write_h5ad(source)
    call = ["tokenize", str(source), "--model", str(folder), "--out", str(out)]
    assert main([*call, "--obs-columns", "type", "depth"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert list(scfm.tl.embed_tokenized(out, folder).obs) == ["length", "cell_id", "type", "depth"]
    assert main(call) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert main([*call, "--overwrite", "--dictionaries", str(folder)]) == 0
    assert main(["embed", str(out), "--model", str(folder), "--out", str(tmp_path / "out.h5ad")]) == 0
    values = scfm.model.load(folder).embed(source)
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "out.h5ad").obsm["X_geneformer"], values)


@pytest.mark.parametrize("name", ["tokens", "tokens.parquet", "tokens.arrow"])
def test_overwriting(name: str, model: FoundationModel, tmp_path: Path) -> None:
    out = scfm.tl.tokenize(cells(), model, tmp_path / name)
    scfm.tl.tokenize(cells()[:2], model, out, overwrite=True)
    assert scfm.tl.embed_tokenized(out, model).n_obs == 2
    if out.is_dir():
        (out / "thesis.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="a folder of something else"):
            scfm.tl.tokenize(cells(), model, out, overwrite=True)
        assert (out / "thesis.txt").read_text() == "mine"
