"""scfm.tl.gene_context: how much the states of a gene differ between cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scfm

from ..families import IDS, TINY, dense_states

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from scfm.model import FoundationModel


@pytest.fixture(scope="module", params=["Geneformer V2", "TranscriptFormer"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FoundationModel:
    return TINY[request.param].load(tmp_path_factory.mktemp("model"))


@pytest.fixture
def cells() -> ad.AnnData:
    adata = scfm.datasets.synthetic(12, len(IDS) + 1, genes_per_cell=9)
    adata.var_names = [*IDS, "unknown"]
    adata.obs["type"] = pd.Categorical(["a", "b", "b", "c"] * 3)
    return adata


def spread(directions: NDArray[np.float64]) -> float:
    """One minus the mean cosine with the mean direction."""
    mean = directions.mean(axis=0)
    return 1 - float((directions @ mean / np.linalg.norm(mean)).mean())


def unit(x: NDArray[np.float32]) -> NDArray[np.float64]:
    x = x.astype(np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("groupby", [None, "type"])
def test_variance_of_directions(groupby: str | None, model: FoundationModel, cells: ad.AnnData) -> None:
    states = dense_states(scfm.tl.gene_embeddings(cells, model))
    scfm.tl.gene_context(cells, model, groupby=groupby)
    found = cells.varm["gene_context"]
    for gene in range(len(IDS)):
        here = ~np.isnan(states[:, gene, 0])
        directions = unit(states[here, gene])
        if groupby is not None and here.any():
            labels = cells.obs[groupby][here]
            directions = unit(np.stack([directions[labels == one].mean(axis=0) for one in labels.unique()]))
        assert found["n"].iloc[gene] == len(directions)
        expected = spread(directions) if len(directions) else np.nan
        assert found["variance"].iloc[gene] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert np.isnan(found["variance"].iloc[-1])
    assert found["n"].iloc[-1] == 0


def test_a_file_and_raw_with_other_genes(tmp_path: Path, model: FoundationModel, cells: ad.AnnData) -> None:
    cells.write_h5ad(tmp_path / "cells.h5ad")
    out = scfm.tl.gene_context(tmp_path / "cells.h5ad", model, out=tmp_path / "out.h5ad")
    scfm.tl.gene_context(cells, model)
    expected = cells.varm["gene_context"]
    pd.testing.assert_frame_equal(ad.read_h5ad(out).varm["gene_context"], expected)
    cells.raw = cells
    few = cells[:, 5:9].copy()
    few.X = np.zeros(few.shape, np.float32)
    scfm.tl.gene_context(few, model, use_raw=True)
    pd.testing.assert_frame_equal(few.varm["gene_context"], expected.iloc[5:9], check_exact=False, atol=1e-6)


@pytest.mark.parametrize("groupby", [None, "type"])
def test_does_not_depend_on_order_and_batches(
    groupby: str | None, model: FoundationModel, cells: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {} if model.family == "geneformer" else TINY["TranscriptFormer"].options
    scfm.tl.gene_context(cells, model, groupby=groupby, **options)
    order = np.random.default_rng(1).permutation(cells.n_obs)
    for setting, value in (("block_rows", 5), ("threads", 2), ("batch_tokens", 20)):
        monkeypatch.setattr(scfm.settings, setting, value)
    shuffled = scfm.tl.gene_context(cells[order], model, groupby=groupby, device=["cpu", "cpu"], copy=True, **options)
    found, expected = (one.varm["gene_context"] for one in (shuffled, cells))
    pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=0, atol=1e-6)


def test_errors(model: FoundationModel, cells: ad.AnnData) -> None:
    with pytest.raises(KeyError, match="groupby='no'"):
        scfm.tl.gene_context(cells, model, groupby="no")
    cells.obs["none"] = pd.Categorical([None] * cells.n_obs)
    with pytest.raises(ValueError, match="groupby='none' holds no value but missing ones"):
        scfm.tl.gene_context(cells, model, groupby="none")
    cells.varm["mine"] = np.zeros((cells.n_vars, 1))
    with pytest.raises(ValueError, match="did not write"):
        scfm.tl.gene_context(cells, model, key_added="mine")


def test_a_plot_names_both_ends(cells: ad.AnnData) -> None:
    import matplotlib.pyplot as plt

    cells.varm["gene_context"] = pd.DataFrame(
        {"variance": np.linspace(0, 0.5, cells.n_vars, dtype=np.float32), "n": 5}, index=cells.var_names
    )
    cells.varm["gene_context"].loc["unknown"] = np.nan, 0
    axes = scfm.pl.gene_context(cells, n_genes=2, show=False)
    assert {text.get_text() for text in axes.texts} == {*IDS[:2], *IDS[-2:]}
    plt.close("all")
    with pytest.raises(ValueError, match="lower least="):
        scfm.pl.gene_context(cells, least=6)
