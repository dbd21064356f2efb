"""Models that read ranked genes equal a slow, obvious version, cell by cell, under any names of the genes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scfm
from scfm.testing import bert_hidden_states, rank_tokens

from ..families import IDS, LONGEST, N_GENES, TINY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from scfm.model import FoundationModel

    States = list[tuple[list[int], list[NDArray[np.float64]]]]

N_OBS, N_LAYERS = 24, 2


@cache
def counts() -> NDArray[np.float32]:
    """Cells from short to cut off, with many ties; one gene is not seen."""
    rng = np.random.default_rng(7)
    detected = np.linspace(0.02, 0.9, N_OBS)[:, None]
    values = (rng.random((N_OBS, N_GENES)) < detected) * rng.poisson(1.5, (N_OBS, N_GENES))
    values[:, 0], values[:, 5] = 1, 0
    return rng.permutation(values).astype(np.float32)


def anndata(values: Any = None, genes: list[str] = IDS) -> ad.AnnData:
    x = sparse.csr_matrix(counts()) if values is None else values
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(x.shape[0])])
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=genes))


@pytest.fixture(scope="module", params=["Geneformer V1", "Geneformer V2", "scCello"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FoundationModel:
    return TINY[request.param].load(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def default_settings() -> Iterator[None]:
    yield
    scfm.settings.reset()


@pytest.fixture(scope="module")
def cells(model: FoundationModel) -> States:
    """Tokens of each cell, and its hidden states in each layer."""
    weights = {name: model.tensors[name].numpy() for name in model.tensors}
    config = {"layer_norm_eps": 1e-12, "num_attention_heads": 2, "num_hidden_layers": N_LAYERS}
    tokens = scfm.genes.align(anndata().var, model.vocabulary).tokens
    ranked = rank_tokens(counts(), tokens, model.vocabulary, LONGEST)
    return [(cell.tolist(), bert_hidden_states(cell, weights, config)) for cell in ranked]


def test_tokens_equal_the_oracle(model: FoundationModel, cells: States, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[int, list[int]] = {}
    forward = model.forward

    def spy(network: Any, batch: Any, options: Any) -> Any:
        parts = np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])
        found.update(zip(batch.rows.tolist(), (part.tolist() for part in parts), strict=True))
        return forward(network, batch, options)

    monkeypatch.setattr(model, "forward", spy)
    model.embed(anndata())
    assert [found[row] for row in range(N_OBS)] == [tokens for tokens, _ in cells]


@pytest.mark.parametrize("layer", range(-N_LAYERS, 1))
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_equals_the_oracle_cell_by_cell(model: FoundationModel, cells: States, pooling: str, layer: int) -> None:
    if pooling == "cls" and not model.has_cls:
        with pytest.raises(ValueError, match="pooling='cls' is not known to .*'mean', 'gene'"):
            model.embed(anndata(), pooling="cls")
        return
    adata = anndata()
    scfm.tl.embed(adata, model, pooling=pooling, hidden_layer=layer)
    first, last = (int(name in model.vocabulary.special_tokens) for name in ("<cls>", "<eos>"))
    states = [states[N_LAYERS + layer] for _, states in cells]
    wanted = [one[0] if pooling == "cls" else one[first : len(one) - last].mean(axis=0) for one in states]
    found = adata.obsm[f"X_{model.family}"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert found.dtype == np.float32
    assert adata.obs_names.tolist() == [f"cell{i}" for i in range(N_OBS)]


def test_gene_pooling_equals_a_mean_per_gene(model: FoundationModel, cells: States) -> None:
    adata = anndata(sparse.csr_matrix(np.hstack([counts(), counts()[:, :1]])), [*IDS, "ENSG00000999999"])
    seen: dict[int, list[NDArray[np.float64]]] = {}
    for tokens, states in cells:
        for token, state in zip(tokens, states[model.card.hidden_layer - 1], strict=True):
            seen.setdefault(token, []).append(state)
    nothing = np.full(model.n_features, np.nan)
    tokens = scfm.genes.align(adata.var, model.vocabulary).tokens
    wanted = np.stack([np.mean(seen[token], axis=0) if token in seen else nothing for token in tokens.tolist()])
    scfm.tl.embed(adata, model, pooling="gene", key_added="genes")
    np.testing.assert_allclose(adata.varm["genes"], wanted, rtol=0, atol=1e-5)
    assert np.isnan(adata.varm["genes"][[5, -1]]).all()
    assert adata.uns["genes"]["params"]["pooling"] == "gene"


SPELLINGS: dict[str, Callable[[int], str]] = {
    "versioned": lambda i: f"ENSG{i:011d}.{1 + i % 14}",
    "symbols": lambda i: f"GENE{i}",
    "lower-case symbols": lambda i: f"gene{i}",
    "retired ids": lambda i: f"ENSG0001{i - 1:07d}" if (i - 1) % 10 == 0 else f"ENSG{i:011d}",
}


@pytest.mark.parametrize("column", [None, "gene_ids", "feature_name", "anything"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_names_of_the_same_genes(model: FoundationModel, spelling: str, column: str | None) -> None:
    names = [SPELLINGS[spelling](i) for i in range(1, N_GENES + 1)]
    adata = anndata(genes=names if column is None else [f"row{i}" for i in range(N_GENES)])
    if column is not None:
        adata.var[column] = names
    found = model.embed(adata, gene_key=column if column == "anything" else None)
    np.testing.assert_array_equal(found, model.embed(anndata()))
