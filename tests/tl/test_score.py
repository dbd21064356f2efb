"""Scores of cells, and of every gene in them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

import scfm
from scfm.cli import main
from scfm.model.families.transcriptformer.score import Scorer
from scfm.testing import write_transcriptformer

if TYPE_CHECKING:
    from pathlib import Path

    from scfm._types import TokenBatch

N_OBS, N_GENES = 7, 40
NAMES = ("transcriptformer_count_llh", "transcriptformer_gene_llh")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_transcriptformer(tmp_path_factory.mktemp("tf") / "tiny", n_genes=N_GENES, seq_len=15)


def cells() -> ad.AnnData:
    """One cell without genes, some with more than the model takes."""
    rng = np.random.default_rng(0)
    x = rng.poisson(np.linspace(0.1, 2, N_OBS)[:, None], (N_OBS, N_GENES)).astype(np.float32)
    x[3] = 0
    adata = ad.AnnData(sparse.csr_matrix(x))
    adata.var["ids"] = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]
    adata.var_names = [f"gene{i}" for i in range(N_GENES)]
    return adata


@pytest.mark.filterwarnings("ignore:.*cells hold no gene of the model", "ignore:.*cells express more than")
@pytest.mark.parametrize("compat", [None, "upstream"])
def test_scores_of_cells_are_the_means_of_those_of_their_genes(folder: Path, compat: None) -> None:
    adata, plain = cells(), cells()
    scfm.tl.score(adata, folder, per_gene=True, compat=compat, gene_key="ids")
    scfm.tl.score(plain, folder, compat=compat, gene_key="ids")
    assert not plain.layers
    for name in NAMES:
        np.testing.assert_array_equal(adata.obs[name], plain.obs[name])
        layer = adata.layers[name]
        assert (layer.dtype, layer.shape) == (np.float32, adata.shape)
        with np.errstate(invalid="ignore"):
            means = layer.sum(axis=1).A1 / layer.getnnz(axis=1)
        np.testing.assert_allclose(means, adata.obs[name], rtol=1e-6)
        assert (layer.getnnz(axis=1) == np.minimum(adata.X.getnnz(axis=1), 15)).all()
        assert (layer[5].indices[:3] == adata.X[5].indices[:3]).all()
    assert (adata.layers[NAMES[1]].data < 0).all()


@pytest.mark.filterwarnings("ignore:.*cells hold no gene of the model", "ignore:.*cells express more than")
def test_genes_of_raw_are_put_under_their_names(folder: Path) -> None:
    adata, whole = cells(), cells()
    adata.raw = adata
    adata = adata[:, ::-2].copy()
    scfm.tl.score(adata, folder, per_gene=True, use_raw=True, gene_key="ids")
    scfm.tl.score(whole, folder, per_gene=True, gene_key="ids")
    for name in NAMES:
        np.testing.assert_array_equal(adata.layers[name].toarray(), whole.layers[name][:, ::-2].toarray())


@pytest.mark.filterwarnings("ignore:.*cells hold no gene of the model", "ignore:.*cells express more than")
def test_blocks_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = cells(), cells()
    scfm.tl.score(whole, folder, per_gene=True, gene_key="ids")
    monkeypatch.setattr(scfm.settings, "block_rows", 2)
    scfm.tl.score(parts, folder, per_gene=True, gene_key="ids")
    for name in NAMES:
        np.testing.assert_allclose(parts.layers[name].toarray(), whole.layers[name].toarray(), atol=5e-6)


@pytest.mark.filterwarnings("ignore:.*cells hold no gene of the model", "ignore:.*cells express more than")
def test_command(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adata = cells()
    adata.write_h5ad(tmp_path / "a.h5ad")
    call = ["score", str(tmp_path / "a.h5ad"), "--model", str(folder), "--out", str(tmp_path / "b.h5ad"), "--per-gene"]
    logger = logging.getLogger("scfm")
    handlers = list(logger.handlers)
    with caplog.at_level(logging.INFO, "scfm"):
        assert main([*call, "--device", "cpu", "--gene-key", "ids"]) == 0
    scfm.settings.reset()
    logger.handlers[:] = handlers
    assert f"scored {N_OBS} cells" in caplog.text
    assert "embedded" not in caplog.text
    scfm.tl.score(adata, folder, per_gene=True, gene_key="ids", device="cpu")
    found = ad.read_h5ad(tmp_path / "b.h5ad")
    for name in NAMES:
        np.testing.assert_array_equal(found.layers[name].toarray(), adata.layers[name].toarray())


def test_a_value_that_is_not_finite_is_not_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Scorer.__call__

    def spoilt(scorer: Scorer, network: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        scores = plain(scorer, network, batch)
        scores[int(batch.lengths[0]) - 1, 1] = torch.nan  # the last gene of the first cell
        return scores

    monkeypatch.setattr(Scorer, "__call__", spoilt)
    adata = cells()[0].copy()
    with pytest.warns(UserWarning, match="1 of 1 cells have results that are not finite"):
        scfm.tl.score(adata, folder, gene_key="ids")
    assert np.isfinite(adata.obs[NAMES[0]]).all()
    assert np.isnan(adata.obs[NAMES[1]]).all()
