"""scfm.tl.predict_genes: how probable genes are to the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import torch

import scfm

from ..families import IDS, TINY

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from scfm.model import FoundationModel

RTOL = 1e-4
"""The logits of scCello are cosines over a temperature of 0.01."""
MASKED = ["Geneformer V1", "Geneformer V2", "scCello"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=MASKED)
def model(request: pytest.FixtureRequest, folder: Path) -> FoundationModel:
    return TINY[request.param].load(folder / request.param.replace(" ", "-"))


def cells(n_obs: int = 6) -> ad.AnnData:
    adata = scfm.datasets.synthetic(n_obs, len(IDS), genes_per_cell=9)
    adata.var_names = IDS
    adata.var["ensembl_id"] = IDS
    return adata


def sequences(model: FoundationModel, adata: ad.AnnData) -> list[NDArray[np.int32]]:
    with model.session(adata) as session:
        block = next(session.tokens())
    return np.split(block.tokens, block.offsets[1:-1])


def distribution(model: FoundationModel, tokens: NDArray[np.int32], at: int) -> NDArray[np.float64]:
    """Probabilities at one position by the plain network and head."""
    network = model.network(model.n_layers).eval()
    with torch.inference_mode():
        hidden = network(torch.from_numpy(tokens).long(), [len(tokens)])[at]
        if model.family == "sccello":
            from scfm.nn import gene_head

            head = gene_head(model.config, model.tensors)
            norm = torch.nn.functional.normalize
            words = norm(head(network.word_embeddings.weight), dim=1)
            logits = norm(head(hidden), dim=0) @ words.T / model.config.tau
        else:
            head = scfm.nn.MaskedLMHead(model.config)
            head.load_published(model.tensors)
            logits = head(hidden, network.word_embeddings.weight)
        return torch.softmax(logits.double(), dim=0).numpy()


def test_each_gene_at_its_masked_position(model: FoundationModel) -> None:
    adata = cells()
    scfm.tl.predict_genes(adata, model, n_top=3)
    found, mask = adata.layers["predict_genes"], model.vocabulary.special_tokens["<mask>"]
    column = {token: at for at, token in enumerate(model.vocabulary.tokens.tolist())}
    tops: dict[int, list[NDArray[np.float64]]] = {}
    n_stored = 0
    for cell, tokens in enumerate(sequences(model, adata)):
        for at, token in enumerate(tokens.tolist()):
            if token in column:
                masked = tokens.copy()
                masked[at] = mask
                probabilities = distribution(model, masked, at)
                assert found[cell, column[token]] == pytest.approx(probabilities[token], rel=RTOL, abs=1e-9)
                tops.setdefault(token, []).append(probabilities)
                n_stored += 1
    assert found.nnz == n_stored
    table = adata.uns["predict_genes"]["predicted"]
    for token, rows in tops.items():
        mean = np.mean(rows, axis=0)
        of_gene = table[table["gene"] == IDS[column[token]]]
        np.testing.assert_allclose(of_gene["probability"], np.sort(mean)[::-1][:3], rtol=RTOL)
        assert (of_gene["n_cells"] == len(rows)).all()
    assert adata.uns["predict_genes"]["params"]["mask"] == "each"


@pytest.mark.filterwarnings("ignore:None of the 6 cells expresses")
@pytest.mark.parametrize("mask", ["given", 0.4])
def test_several_masked_genes(mask: Any, model: FoundationModel) -> None:
    adata = cells()
    genes = IDS[:40]
    scfm.tl.predict_genes(adata, model, genes=genes, mask=mask)
    found, known = adata.layers["predict_genes"], set(model.vocabulary.tokens[:40].tolist())
    token_of = dict(zip(IDS, model.vocabulary.tokens.tolist(), strict=True))
    for cell, tokens in enumerate(sequences(model, adata)):
        row = found[cell]
        chosen = {token_of[IDS[at]] for at in row.indices}
        if mask == "given":
            assert chosen == known & set(tokens.tolist())
        masked = np.where(np.isin(tokens, list(chosen)), model.vocabulary.special_tokens["<mask>"], tokens)
        for at in np.flatnonzero(np.isin(tokens, list(chosen))):
            expected = distribution(model, masked, at)[tokens[at]]
            assert row[0, list(token_of.values()).index(tokens[at])] == pytest.approx(expected, rel=RTOL, abs=1e-9)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = scfm.tl.predict_genes(adata[order], model, genes=genes, mask=mask, device=["cpu", "cpu"], copy=True)
    np.testing.assert_allclose(shuffled.layers["predict_genes"].toarray(), found[order].toarray(), rtol=1e-5)
    if mask != "given":
        scfm.tl.predict_genes(adata, model, genes=genes, mask=mask, seed=1)
        assert (adata.layers["predict_genes"] != found).nnz


@pytest.mark.parametrize("compat", [None, "upstream"])
def test_next_genes_of_transcriptformer(compat: Any, folder: Path) -> None:
    model = TINY["TranscriptFormer"].load(folder / "tf")
    adata = cells()
    scfm.tl.score(adata, model, per_gene=True, compat=compat)
    scfm.tl.predict_genes(adata, model, n_top=len(IDS) + 10, compat=compat)
    found = adata.layers["predict_genes"]
    expected = adata.layers["transcriptformer_gene_llh"]
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.data, np.exp(expected.data), rtol=RTOL)
    table = adata.uns["predict_genes"]["predicted"]
    np.testing.assert_allclose(table.groupby("gene")["probability"].sum(), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="masks none; leave mask out"):
        scfm.tl.predict_genes(adata, model, mask=0.2)


@pytest.mark.filterwarnings("ignore:None of the 6 cells expresses")
def test_a_file_and_chosen_genes(tmp_path: Path, model: FoundationModel) -> None:
    adata = cells()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    out = scfm.tl.predict_genes(tmp_path / "cells.h5ad", model, genes=IDS[:3], n_top=0, out=tmp_path / "out.h5ad")
    scfm.tl.predict_genes(adata, model)
    written = ad.read_h5ad(out)
    assert "predicted" not in written.uns["predict_genes"]
    assert set(written.layers["predict_genes"].indices) <= {0, 1, 2}
    expected = adata.layers["predict_genes"].toarray()[:, :3]
    np.testing.assert_allclose(written.layers["predict_genes"].toarray()[:, :3], expected, rtol=RTOL)


def test_errors(folder: Path, model: FoundationModel) -> None:
    adata = cells()
    with pytest.raises(ValueError, match="name them"):
        scfm.tl.predict_genes(adata, model, mask="given")
    with pytest.raises(ValueError, match="is not a share"):
        scfm.tl.predict_genes(adata, model, mask=1.5)
    with pytest.raises(KeyError, match="ENSG99"):
        scfm.tl.predict_genes(adata, model, genes="ENSG99")
    with pytest.raises(TypeError, match="predicts no genes; models of these families do: geneformer"):
        scfm.tl.predict_genes(adata, TINY["ESM2-CE"].load(folder / "esm"))
    assert not adata.layers


@pytest.mark.parametrize("name", [*MASKED, "TranscriptFormer"])
def test_does_not_depend_on_order_and_batches(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TINY[name].load(folder / f"order-{name}")
    adata = cells()
    options = TINY[name].options
    scfm.tl.predict_genes(adata, model, **options)
    order = np.random.default_rng(1).permutation(adata.n_obs)
    for setting, value in (("block_rows", 2), ("threads", 2), ("batch_tokens", 20)):
        monkeypatch.setattr(scfm.settings, setting, value)
    monkeypatch.setattr("scfm.tasks.predict_genes.COPY_TOKENS", 30)
    monkeypatch.setattr("scfm.tasks.predict_genes.ROWS", 2)
    shuffled = scfm.tl.predict_genes(adata[order], model, device=["cpu", "cpu"], copy=True, **options)
    found, expected = shuffled.layers["predict_genes"].toarray(), adata.layers["predict_genes"][order].toarray()
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=1e-9)
    tables = [one.uns["predict_genes"]["predicted"].groupby("gene") for one in (shuffled, adata)]
    totals = [table["probability"].sum().sort_index() for table in tables]
    np.testing.assert_allclose(*totals, rtol=RTOL)


def test_genes_without_results(model: FoundationModel) -> None:
    adata = cells()
    adata.X = adata.X.toarray() * (np.arange(adata.n_vars) > 1)
    with pytest.raises(ValueError, match=f"None of the 6 cells expresses {IDS[0]}, {IDS[1]}"):
        scfm.tl.predict_genes(adata, model, genes=IDS[:2])
    assert not adata.layers
    there = [name for name, n in zip(IDS, adata.X.sum(axis=0), strict=True) if n][:2]
    with pytest.warns(UserWarning, match=f"None of the 6 cells expresses {IDS[1]} so"):
        scfm.tl.predict_genes(adata, model, genes=[*there, IDS[1]])
    assert set(adata.layers["predict_genes"].indices) == set(adata.var_names.get_indexer(there))
    adata.var_names = adata.var["ensembl_id"] = [*IDS[:-1], "foreign"]
    with pytest.warns(UserWarning, match="does not know foreign: there are no results"):
        scfm.tl.predict_genes(adata, model, genes=[*there, "foreign"])


def test_a_model_without_its_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = TINY["Geneformer V2"].load(folder / "headless")
    tensors = {name: tensor for name, tensor in model.tensors.items() if not name.startswith("cls.")}
    (path,) = (folder / "headless").glob("*.safetensors")
    assert len(load_file(path)) > len(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with pytest.raises(TypeError, match="headless has no head that predicts genes"):
        scfm.tl.predict_genes(cells(), scfm.model.load(folder / "headless"))
