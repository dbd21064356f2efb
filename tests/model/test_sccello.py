from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import scfm
from scfm.cli import main
from scfm.model._citations import cite
from scfm.model.arguments import Arguments
from scfm.model.registry import card_of
from scfm.testing import write_geneformer, write_sccello

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sccello(tmp_path / "published")


def cells(n_genes: int = 200, **options: Any) -> AnnData:
    adata = scfm.datasets.synthetic(6, n_genes, genes_per_cell=20, **options)
    adata.var_names = [f"ENSG{i:011d}" for i in range(1, n_genes + 1)]
    return adata


def test_embed_and_project(folder: Path) -> None:
    model, adata = scfm.model.load(folder), cells()
    scfm.tl.embed(adata, model)
    scfm.tl.embed(adata, model, pooling="cell_cls", key_added="projected")
    params = adata.uns["sccello"]["params"]
    assert (params["pooling"], params["hidden_layer"], params["family"]) == ("cls", 0, "sccello")
    head = model.networks(3, [torch.device("cpu")], torch.float32)[0].cell_head
    with torch.inference_mode():
        projected = head(torch.from_numpy(adata.obsm["X_sccello"])).numpy()
    np.testing.assert_allclose(adata.obsm["projected"], projected, atol=1e-6)
    assert model.embed(adata, pooling="mean").shape == (6, 16)
    assert model.embed(adata, pooling="gene").shape == (200, 16)
    assert "Yuan2024" in cite(card_of("sccello-zeroshot").paper)


def test_mean_leaves_cls_out(folder: Path) -> None:
    model, adata = scfm.model.load(folder), cells()[:1].copy()
    genes = model.embed(adata, pooling="gene")
    expected = np.nanmean(genes, axis=0, keepdims=True)
    np.testing.assert_allclose(model.embed(adata, pooling="mean"), expected, atol=1e-6)


def test_a_cell_without_genes_is_that_of_cls_alone(folder: Path) -> None:
    model, adata = scfm.model.load(folder), cells()
    adata.X = np.vstack([np.zeros((1, 200), np.float32), adata.X.toarray()[1:]])
    with pytest.warns(UserWarning, match="1 of 6 cells hold no gene"):
        values = model.embed(adata)
    assert np.isfinite(values).all()


def test_longest_cell_has_cls_and_one_gene_less(folder: Path) -> None:
    model = scfm.model.load(folder)
    adata = cells(200)
    adata.X = np.ones_like(adata.X.toarray(), dtype=np.float32)
    assert model.run(adata, Arguments(max_tokens=21)).params["n_cells_truncated"] == 6
    with scfm.read.open_counts(adata) as source:
        options = Arguments(max_tokens=21).resolved(model)
        block = model.encoder(source, model.match(source.var, None, options), options)(source.read(0, 6))
    assert np.diff(block.offsets).tolist() == [21] * 6
    assert block.tokens[block.offsets[:-1]].tolist() == [model.vocabulary.special_tokens["<cls>"]] * 6


def test_symbols_come_from_the_table_and_upstream_reads_them_exactly(folder: Path) -> None:
    table = folder / "vocab_id2name.csv"
    table.write_text(table.read_text() + "ENSG00000000009,NAME7\n")
    model, adata = scfm.model.load(folder), cells(20)
    by_id = model.embed(adata)
    adata.var_names = [f"NAME{i}" for i in range(1, 21)]
    assert scfm.pp.match_genes(adata, folder).by_symbol == 20
    adata.var_names = [f"name{i}" for i in range(1, 21)]
    assert scfm.pp.match_genes(adata, folder).by_symbol == 20
    with pytest.raises(ValueError, match="No gene of the data"):
        model.embed(adata, compat="upstream")
    adata.var_names = [f"NAME{i}" if i != 7 else "x" for i in range(1, 21)]
    # the last row of a symbol wins: NAME7 is gene 9
    assert model.vocabulary.symbols["NAME7"] == "ENSG00000000009"
    assert not np.allclose(model.embed(adata, compat="upstream"), by_id)


def test_upstream_keeps_versions_and_takes_ids_from_its_column(folder: Path) -> None:
    model, adata = scfm.model.load(folder), cells(20)
    expected = model.embed(adata, compat="upstream")
    adata.var["ensembl_ids"] = adata.var_names
    adata.var_names = [f"x{i}" for i in range(20)]
    np.testing.assert_array_equal(model.embed(adata, compat="upstream"), expected)
    adata.var["ensembl_ids"] = [f"{gene}.3" for gene in adata.var["ensembl_ids"]]
    with pytest.raises(ValueError, match="No gene of the data"):
        model.embed(adata, compat="upstream")
    np.testing.assert_allclose(model.embed(adata), expected, atol=1e-6)
    with pytest.raises(KeyError, match="gene_key='nothing'"):
        model.embed(adata, compat="upstream", gene_key="nothing")


def test_upstream_takes_raw(folder: Path) -> None:
    model, adata = scfm.model.load(folder), cells()
    adata.raw = adata.copy()
    adata.X = adata.X.toarray()[:, ::-1].copy()
    assert model.run(adata, Arguments(compat="upstream")).params["matrix"] == "raw.X"
    assert model.run(adata).params["matrix"] == "X"


def test_cellxgene_filter_needs_its_columns(folder: Path) -> None:
    model, adata = scfm.model.load(folder), cells()
    with pytest.raises(KeyError, match="missing: organism, assay, is_primary_data"):
        model.embed(adata, cellxgene_filter=True)
    adata.obs["organism"] = ["Homo sapiens"] * 5 + ["Mus musculus"]
    adata.obs["assay"] = ["10x 3' v3"] * 4 + ["Smart-seq2"] * 2
    adata.obs["is_primary_data"] = [False] + [True] * 5
    with pytest.warns(UserWarning, match="3 of 6 cells were left out"):
        values = model.embed(adata, cellxgene_filter=True)
    assert np.isnan(values).any(axis=1).tolist() == [True, False, False, False, True, True]
    np.testing.assert_allclose(values[1:4], model.embed(adata)[1:4], atol=1e-6)


def test_it_is_told_from_a_geneformer(folder: Path, tmp_path: Path) -> None:
    assert scfm.model.load(folder).card.family == "sccello"
    other = write_geneformer(tmp_path / "geneformer", version=1)
    assert scfm.model.load(other).card.family == "geneformer"
    with pytest.raises(ValueError, match="The weights have 203 tokens"):
        scfm.model.load(folder, family="geneformer")
    with pytest.raises(ValueError, match="tau must be a positive number, got None"):
        scfm.model.load(other, family="sccello")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("cell_cls.predictions.bias"), "missing: cell_cls.predictions.bias"),
        (lambda t: t.pop("bert.embeddings.expbin_embeddings.weight"), "missing: bert.embeddings.expbin"),
        (lambda t: t.update(other=torch.zeros(1)), "unexpected: other"),
        (lambda t: t.update(ctgraph_sim=torch.zeros(3, 3)), "ctgraph_sim is"),
        (lambda t: t.update({"learned_centroid.weight": torch.zeros(3, 16)}), "fewer than the 12 cell types"),
        (lambda t: t.update({"affine_projection.bias": torch.zeros(3)}), "affine_projection.bias is"),
    ],
)
def test_wrong_tensors(folder: Path, change: Any, message: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        scfm.model.load(folder)


def test_biases_that_differ(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "cell_cls.predictions"
    tensors[f"{name}.dense_2.bias"] = tensors[f"{name}.bias"] + 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="differ; they must be the same tensor"):
        scfm.model.load(folder).embed(cells())


@pytest.mark.parametrize("tau", [0.0, -1.0, "x", None])
def test_temperature(folder: Path, tau: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tau": tau}))
    with pytest.raises(ValueError, match="tau must be a positive number"):
        scfm.model.load(folder)


def test_a_table_that_is_none(folder: Path) -> None:
    (folder / "vocab_id2name.csv").write_text("<html>not here</html>")
    with pytest.raises(ValueError, match="is not a table with the columns id and name"):
        scfm.model.load(folder)


def test_convert_command_takes_several_dictionaries(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    for path in [*folder.glob("*.pkl"), folder / "vocab_id2name.csv"]:
        path.rename(tmp_path / ("names.csv" if path.suffix == ".csv" else f"tables/{path.name}"))
    out = tmp_path / "out"
    tables = ["--dictionaries", str(tmp_path / "tables"), str(tmp_path / "names.csv")]
    assert main(["convert", str(folder), "--out", str(out), *tables]) == 0
    assert scfm.model.load(out).vocabulary.symbols["NAME3"] == "ENSG00000000003"
