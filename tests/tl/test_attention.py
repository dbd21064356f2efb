"""scfm.tl.attention: what each gene of a cell reads from the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scfm
from scfm.testing import write_geneformer, write_sccello, write_transcriptformer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from scfm.model import FoundationModel

N_GENES = 30
WRITE: dict[str, Callable[..., Any]] = {
    "V1": lambda path: write_geneformer(path, version=1, n_genes=N_GENES, max_tokens=16),
    "V2": lambda path: write_geneformer(path, n_genes=N_GENES, max_tokens=16),
    "scCello": lambda path: write_sccello(path, n_genes=N_GENES, max_tokens=16),
    "TranscriptFormer": lambda path: write_transcriptformer(path, n_genes=N_GENES, seq_len=20),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp("models") / name) for name, write in WRITE.items()}


@pytest.fixture(scope="module", params=WRITE)
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> FoundationModel:
    return scfm.model.load(folders[request.param])


def cells(n_obs: int = 12) -> ad.AnnData:
    x = np.random.default_rng(0).poisson(0.4, (n_obs, N_GENES)).astype(np.float32)
    x[:, 0] = 1
    obs = pd.DataFrame({"type": pd.Categorical(["a", "b", "c"] * (n_obs // 3))}, index=[f"c{i}" for i in range(n_obs)])
    var = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(1, N_GENES + 1)])
    return ad.AnnData(sparse.csr_matrix(x), obs=obs, var=var)


def plain_means(
    model: FoundationModel, adata: ad.AnnData, join: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> tuple[NDArray[np.float64], NDArray[np.int64], dict[str, float]]:
    """Means of pairs by a loop over cells, and those of special tokens."""
    sums, counts = np.zeros((N_GENES, N_GENES)), np.zeros((N_GENES, N_GENES), int)
    specials: dict[str, list[float]] = {}
    for names, weights in model.attention(adata):
        joined = join(weights).astype(np.float64)
        columns = adata.var_names.get_indexer(names)
        genes = np.flatnonzero(columns >= 0)
        for at in np.flatnonzero(columns < 0):
            specials.setdefault(str(names[at]), []).extend(joined[genes, at])
        kept = joined[np.ix_(genes, genes)]
        place = np.ix_(columns[genes], columns[genes])
        sums[place] += kept / kept.sum(axis=1, keepdims=True)
        counts[place] += 1
    return sums / np.maximum(counts, 1), counts, {name: float(np.mean(values)) for name, values in specials.items()}


@pytest.mark.parametrize("hidden_layer", [0, -1])
@pytest.mark.parametrize("name", ["V1", "V2"])
def test_equals_transformers(name: str, hidden_layer: int, folders: dict[str, Path]) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.BertForMaskedLM.from_pretrained(folders[name], attn_implementation="eager").eval()
    model = scfm.model.load(folders[name])
    adata = cells()
    found = model.attention(adata, hidden_layer=hidden_layer)
    with model.session(adata) as session:
        block = next(session.tokens())
    for cell, tokens in zip(found, np.split(block.tokens, block.offsets[1:-1]), strict=True):
        with torch.inference_mode():
            attentions = peer(torch.from_numpy(tokens)[None].long(), output_attentions=True).attentions
        np.testing.assert_allclose(cell.weights, attentions[hidden_layer - 1][0], rtol=0, atol=2e-6)


def test_equals_the_formula_of_transcriptformer(folders: dict[str, Path]) -> None:
    model = scfm.model.load(folders["TranscriptFormer"])
    adata = cells()
    with model.session(adata) as session:
        block = next(session.tokens())
    config, network = model.config, model.network(model.n_layers)
    last = network.layers[-1]
    d = config.hidden_size // config.n_heads
    for i, cell in enumerate(model.attention(adata)):
        part = slice(block.offsets[i], block.offsets[i + 1])
        tokens, counts = torch.from_numpy(block.tokens[part]).long(), torch.from_numpy(block.values[part])
        with torch.inference_mode():
            x = model.network(model.n_layers - 1)(tokens, counts, [len(tokens)])
            q, k, _ = last.qkv(last.norm1(x)).view(len(tokens), 3, config.n_heads, d).unbind(1)
            scores = torch.einsum("qhd,khd->hqk", q, k) / d**0.5 + torch.log(1 + counts + config.log_counts_eps)
            scores = config.softcap * torch.tanh(scores / config.softcap)
            behind = torch.ones(len(tokens), len(tokens)).triu(1).bool()
            expected = torch.softmax(scores.masked_fill(behind, -torch.inf), dim=-1)
        np.testing.assert_allclose(cell.weights, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("heads", ["mean", "max", [1]])
def test_means_over_cells(heads: Any, model: FoundationModel) -> None:
    join = {"mean": lambda w: w.mean(axis=0), "max": lambda w: w.max(axis=0)}
    adata = cells()
    expected, counts, specials = plain_means(model, adata, join.get(str(heads), lambda w: w[1]))
    scfm.tl.attention(adata, model, heads=heads)
    weights = adata.varp["attention"].toarray()
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-6)
    at = weights > 0
    assert (at == (expected > 0)).all()
    np.testing.assert_array_equal(adata.varp["attention_n"].toarray()[at], counts[at])
    params = adata.uns["attention"]["params"]
    assert params["special_tokens"] == pytest.approx(specials, abs=1e-6)
    assert params["function"] == "scfm.tl.attention"


def test_groups(model: FoundationModel) -> None:
    adata = cells()
    scfm.tl.attention(adata, model, groupby="type", genes=adata.var_names[:3].tolist(), n_top=4)
    assert set(adata.varp["attention"].tocoo().row) == {0, 1, 2}
    for group in "abc":
        of_group = adata[adata.obs["type"] == group].copy()
        scfm.tl.attention(of_group, model, genes=adata.var_names[:3].tolist(), n_top=4)
        found, expected = (
            scfm.get.attention_df(adata, group=group),
            scfm.get.attention_df(of_group),
        )
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-5, atol=1e-6)
        assert (found.groupby("query").size() <= 4).all()


def test_does_not_depend_on_order_and_batches(model: FoundationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = cells()
    scfm.tl.attention(adata, model)
    order = np.random.default_rng(1).permutation(adata.n_obs)
    monkeypatch.setattr(scfm.settings, "block_rows", 5)
    monkeypatch.setattr(scfm.settings, "threads", 2)
    monkeypatch.setattr("scfm.tasks.Attention.batch_tokens", 20)
    for module in ("attention", "causal"):
        monkeypatch.setattr(f"scfm.nn.{module}.TILE_WEIGHTS", 50)
    shuffled = scfm.tl.attention(adata[order], model, device=["cpu", "cpu"], copy=True)
    for name in ("attention", "attention_n"):
        difference = adata.varp[name] - shuffled.varp[name]
        assert abs(difference).max() <= 1e-6


def test_a_file(tmp_path: Path, model: FoundationModel) -> None:
    adata = cells()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    out = scfm.tl.attention(tmp_path / "cells.h5ad", model, groupby="type", out=tmp_path / "out.h5ad")
    scfm.tl.attention(adata, model, groupby="type")
    written = ad.read_h5ad(out)
    pd.testing.assert_frame_equal(scfm.get.attention_df(written), scfm.get.attention_df(adata))
    pd.testing.assert_frame_equal(scfm.get.attention_df(written, group="b"), scfm.get.attention_df(adata, group="b"))


def test_an_empty_cell(model: FoundationModel) -> None:
    adata = cells(6)
    adata.X = adata.X.toarray() * (np.arange(6) != 2)[:, None]
    with pytest.warns(UserWarning, match="1 of 6 cells hold no gene"):
        scfm.tl.attention(adata, model)
    with_others = adata.varp["attention"]
    alone = adata[np.arange(6) != 2].copy()
    scfm.tl.attention(alone, model)
    np.testing.assert_array_equal(with_others.toarray(), alone.varp["attention"].toarray())
    assert len(model.attention(adata)) == 6


def test_errors(folders: dict[str, Path], model: FoundationModel) -> None:
    adata = cells()
    with pytest.raises(ValueError, match="has the heads 0 to"):
        scfm.tl.attention(adata, model, heads=[99])
    with pytest.raises(ValueError, match="name one at least"):
        scfm.tl.attention(adata, model, heads=[])
    for layer in (-model.n_layers, -model.n_layers - 1, 1):
        match = f"hidden_layer={layer} has no attention: 0 .* down to {1 - model.n_layers} for the first"
        with pytest.raises(ValueError, match=match):
            scfm.tl.attention(adata, model, hidden_layer=layer)
        with pytest.raises(ValueError, match=match):
            model.attention(adata, hidden_layer=layer)
    scfm.tl.attention(adata, model, hidden_layer=1 - model.n_layers, copy=True)
    with pytest.raises(KeyError, match="ENSG99"):
        scfm.tl.attention(adata, model, genes=["ENSG99"])
    with pytest.raises(TypeError, match="has no attention; models of these families have: geneformer"):
        scfm.tl.attention(adata, scfm.model.load(folders["TranscriptFormer"], family="esm2ce"))
    with pytest.raises(TypeError, match="has no attention"):
        scfm.model.load(folders["TranscriptFormer"], family="esm2ce").attention(adata)
    assert not adata.varp
    scfm.tl.attention(adata, model, n_top=2)
    with pytest.raises(KeyError, match="has no groups"):
        scfm.get.attention_df(adata, group="a")
    with pytest.raises(KeyError, match="There is no attention of"):
        scfm.get.attention_df(adata, "CD3D")
    adata.varp["mine"] = adata.varp["attention"]
    with pytest.raises(ValueError, match="did not write"):
        scfm.tl.attention(adata, model, key_added="mine")


def test_genes_without_results(model: FoundationModel) -> None:
    adata = cells()
    adata.X = adata.X.toarray() * (np.arange(N_GENES) != 3)
    first, absent = adata.var_names[0], adata.var_names[3]
    with pytest.raises(ValueError, match=f"None of the 12 cells expresses {absent}"):
        scfm.tl.attention(adata, model, genes=absent)
    assert not adata.varp
    with pytest.warns(UserWarning, match=f"None of the 12 cells expresses {absent} so"):
        scfm.tl.attention(adata, model, genes=[first, absent])
    assert set(adata.varp["attention"].tocoo().row) == {0}
    adata.var_names = [*adata.var_names[:-1], "foreign"]
    with pytest.warns(UserWarning, match="does not know foreign: there are no results"):
        scfm.tl.attention(adata, model, genes=[first, "foreign"])
    with pytest.raises(ValueError, match="knows none of the genes="):
        scfm.tl.attention(adata, model, genes="foreign")


def test_cells_without_the_queries_change_nothing(model: FoundationModel) -> None:
    adata = cells()
    rare = int(np.argmin(adata.X.sum(axis=0)))
    having = adata.X.toarray()[:, rare] > 0
    assert 0 < having.sum() < 12
    few = adata[having].copy()
    for one in (adata, few):
        scfm.tl.attention(one, model, genes=adata.var_names[rare])
    np.testing.assert_allclose(adata.varp["attention"].toarray(), few.varp["attention"].toarray(), rtol=0, atol=1e-6)
    assert adata.uns["attention"]["params"]["special_tokens"] == pytest.approx(
        few.uns["attention"]["params"]["special_tokens"], abs=1e-6
    )
    assert adata.uns["attention"]["params"]["n_cells"] == 12
