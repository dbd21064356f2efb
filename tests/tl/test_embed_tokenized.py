"""Cells that were tokenised elsewhere get the embedding of their counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import scfm
from scfm.cli import main
from scfm.model.arguments import Arguments
from scfm.read import open_counts
from scfm.testing import write_geneformer, write_sccello, write_transcriptformer

if TYPE_CHECKING:
    from pathlib import Path

    from scfm.model import FoundationModel

MAX_TOKENS = 16
WRITE: dict[str, Any] = {"V1": write_geneformer, "V2": write_geneformer, "scCello": write_sccello}


@pytest.fixture(scope="module", params=WRITE)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FoundationModel:
    folder = tmp_path_factory.mktemp("model") / request.param
    version = {} if request.param == "scCello" else {"version": int(request.param[1])}
    return scfm.model.load(WRITE[request.param](folder, n_genes=50, max_tokens=MAX_TOKENS, **version))


def cells(n_obs: int = 9) -> ad.AnnData:
    rng = np.random.default_rng(0)
    x = rng.poisson(0.4, (n_obs, 50)).astype(np.float32)
    x[:, 0] = 1
    adata = ad.AnnData(x)
    adata.var_names = [f"ENSG{i:011d}" for i in range(1, 51)]
    return adata


def tokens_of(model: FoundationModel, adata: ad.AnnData) -> list[np.ndarray]:
    """Sequences as upstream stores them, before they are cut: special tokens and all."""
    with open_counts(adata) as source:
        options = Arguments().resolved(model)
        object.__setattr__(options, "max_tokens", 1000)
        block = model.encoder(source, model.match(source.var, None, options), options)(source.read(0, adata.n_obs))
    return np.split(block.tokens, block.offsets[1:-1])


def write(path: Path, sequences: list[Any], column: str = "input_ids", **columns: Any) -> Path:
    pa.parquet.write_table(pa.table({column: [list(map(int, cell)) for cell in sequences], **columns}), path)
    return path


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_equals_counts(model: FoundationModel, tmp_path: Path, pooling: str | None) -> None:
    adata = cells()
    sequences = tokens_of(model, adata)
    assert max(map(len, sequences)) > MAX_TOKENS
    path = write(
        tmp_path / "a.parquet", sequences, "gene_token_ids", cell_type=[f"t{i % 2}" for i in range(9)], length=[1] * 9
    )
    found = scfm.tl.embed_tokenized(path, model, pooling=pooling)
    whole = model.run(adata, Arguments(pooling=pooling))
    np.testing.assert_array_equal(found.obsm[f"X_{model.family}"], whole.values)
    params = found.uns[model.family]["params"]
    assert params["matrix"] == "gene_token_ids"
    assert "genes" not in params
    for name in ("n_cells_truncated", "n_cells", "pooling", "model", "weights_sha256"):
        assert params[name] == whole.params[name]
    assert found.obs["cell_type"].tolist() == [f"t{i % 2}" for i in range(9)]
    assert found.shape == (9, 0)
    found.write_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(model.embed(path, pooling=pooling), whole.values)


def test_special_tokens_may_be_missing(model: FoundationModel, tmp_path: Path) -> None:
    specials = list(model.vocabulary.special_tokens.values())
    sequences = tokens_of(model, cells())
    bare = [cell[~np.isin(cell, specials)] for cell in sequences]
    found = [model.embed(write(tmp_path / f"{i}.parquet", which)) for i, which in enumerate((sequences, bare))]
    np.testing.assert_array_equal(*found)


def test_store_and_blocks(model: FoundationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", tokens_of(model, cells()), barcode=[f"c{i}" for i in range(9)])
    wanted = model.embed(path)
    monkeypatch.setattr(scfm.settings, "block_rows", 2)
    np.testing.assert_allclose(model.embed(path), wanted, atol=5e-6)
    store = ad.read_zarr(scfm.tl.embed_store(path, model, tmp_path / "out.zarr", shard_rows=4))
    np.testing.assert_allclose(store.obsm[f"X_{model.family}"], wanted, atol=5e-6)
    assert store.obs_names.tolist() == [f"c{i}" for i in range(9)]


def test_empty_cells(tmp_path: Path) -> None:
    sccello = scfm.model.load(write_sccello(tmp_path / "m"))
    path = write(tmp_path / "a.parquet", [[], [sccello.vocabulary.special_tokens["<cls>"]], [5]])
    with pytest.warns(UserWarning, match="2 of 3 cells hold no gene"):
        values = sccello.embed(path)
    np.testing.assert_array_equal(values[0], values[1])
    v1 = scfm.model.load(write_geneformer(tmp_path / "v1", version=1))
    with pytest.warns(UserWarning, match="1 of 2 cells hold no gene"):
        assert np.isnan(v1.embed(write(tmp_path / "b.parquet", [[], [5]]))).any(axis=1).tolist() == [True, False]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pooling": "gene"}, ValueError, "pooling='gene' takes counts"),
        ({"layer": "counts"}, ValueError, "layer= chooses among counts"),
        ({"gene_key": "index"}, ValueError, "gene_key= chooses among counts"),
        ({"cellxgene_filter": True}, ValueError, "cellxgene_filter= chooses among counts or cells"),
    ],
)
def test_what_takes_counts(arguments: dict[str, Any], error: type, message: str, tmp_path: Path) -> None:
    model = scfm.model.load(write_sccello(tmp_path / "m"))
    with pytest.raises(error, match=message):
        model.embed(write(tmp_path / "a.parquet", [[5, 6]]), **arguments)


def test_wrong_tokens_and_models(model: FoundationModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Cell 1 holds the special token 0 among its genes: it is padded"):
        model.embed(write(tmp_path / "a.parquet", [[5, 6], [5, 0, 0]]))
    with pytest.raises(ValueError, match="Cell 0 holds the special token 1 "):
        model.embed(write(tmp_path / "b.parquet", [[5, 1, 6]]))
    with pytest.raises(ValueError, match="999"):
        model.embed(write(tmp_path / "c.parquet", [[5, 999]]))
    with pytest.raises(ValueError, match="is no tokenised dataset"):
        scfm.tl.embed_tokenized(tmp_path / "x.h5ad", model)
    other = scfm.model.load(write_transcriptformer(tmp_path / "tf"))
    with pytest.raises(TypeError, match="reads counts"):
        other.embed(tmp_path / "a.parquet")


def test_command(model: FoundationModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    write_sccello(folder, n_genes=50, max_tokens=MAX_TOKENS)
    loaded = scfm.model.load(folder)
    path, out = write(tmp_path / "a.parquet", tokens_of(loaded, cells())), tmp_path / "out.h5ad"
    assert main(["embed", str(path), "--model", str(folder), "--out", str(out), "--device", "cpu"]) == 0
    np.testing.assert_array_equal(ad.read_h5ad(out).obsm["X_sccello"], loaded.embed(path))
    assert main(["embed", str(path), "--model", str(folder), "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    wrong = ["embed", str(path), "--model", str(folder), "--out", str(out), "--overwrite"]
    assert main([*wrong, "--layer", "counts"]) == 1
    assert "--layer chooses among counts" in capsys.readouterr().err
    assert main([*wrong[:4], "--out", str(tmp_path / "out.zarr")]) == 1
    assert "becomes an .h5ad file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "values"),
    [("when", pa.array([0], pa.timestamp("ns"))), ("day", pa.array([0], pa.date32())), ("", pa.array([1]))],
)
def test_a_column_that_cannot_be_stored_is_told_first(
    name: str, values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", [[50, 60]], **{name: values})
    monkeypatch.setattr("scfm.model.session.Session.run", None)
    with pytest.raises(ValueError, match=r"a\.parquet .*cannot be written to an \.h5ad file"):
        scfm.tl.embed(path, "scfm-mini", out=tmp_path / "out.h5ad")
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]
