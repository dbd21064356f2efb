"""What TranscriptFormer and ESM2-CE make of short, long and empty cells, in any order of genes, and which they leave out."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import scfm
from scfm.run import ArraySink
from scfm.tasks import Embed
from scfm.testing import TranscriptFormerOracle as Oracle
from scfm.testing import (
    transcriptformer_cell,
    transcriptformer_scores,
    transcriptformer_states,
    write_transcriptformer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from scfm.model import FoundationModel as Model

    Models = dict[str, Model]

# half of the cells are too long, and a third are of an assay that the model does not know, by intent
pytestmark = pytest.mark.filterwarnings("ignore:.*cells express more than the", "ignore:.*cells have an assay")
TOLERANCE = 5e-6
N_OBS, N_GENES, LENGTH = 24, 60, 20
IDS = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]
ASSAYS = ["10x 3' v3", "Smart-seq v4", "Drop-seq"]
FAMILIES = ("transcriptformer", "esm2ce")
sizes_and_threads = {
    "block_rows": st.integers(1, N_OBS + 1),
    "block_values": st.integers(1, N_OBS * N_GENES),
    "batch_tokens": st.integers(1, N_OBS * LENGTH),
    "threads": st.integers(1, 5),
}


@pytest.fixture(autouse=True)
def default_settings() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    scfm.settings.reset()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_transcriptformer(tmp_path_factory.mktemp("model") / "tiny", n_genes=N_GENES, seq_len=LENGTH)


@pytest.fixture(scope="session")
def models(folder: Path) -> Models:
    return {family: scfm.model.load(folder, family=family) for family in FAMILIES}


@pytest.fixture(scope="session")
def oracle(folder: Path) -> Oracle:
    return Oracle.load(folder)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, models: Models) -> Model:
    return models[request.param]


@cache
def counts() -> NDArray[np.float32]:
    """Cells from short to cut off, with many ties; no cell is empty."""
    rng = np.random.default_rng(7)
    detected = np.linspace(0.02, 0.9, N_OBS)[:, None]
    values = (rng.random((N_OBS, N_GENES)) < detected) * rng.poisson(1.5, (N_OBS, N_GENES))
    values[:, 0] = 1
    return rng.permutation(values).astype(np.float32)


def anndata(values: Any = None, genes: list[str] | None = None) -> ad.AnnData:
    x = sparse.csr_matrix(counts()) if values is None else values
    labels = np.resize(np.array(ASSAYS, dtype=object), x.shape[0])
    obs = pd.DataFrame({"assay": labels}, index=pd.Index([f"cell{i}" for i in range(x.shape[0])], name="barcode"))
    return ad.AnnData(x, obs=obs, var=pd.DataFrame({"mean": 0.5}, index=IDS if genes is None else genes))


def n_genes() -> NDArray[np.int64]:
    return (counts() > 0).sum(axis=1)


def close(found: Any, wanted: Any, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("order", ["vocabulary", "expression", "input"])
def test_the_order_of_genes_matters_as_it_comes_only(model: Model, order: str) -> None:
    mixed = anndata()[:, np.random.default_rng(1).permutation(N_GENES)].copy()
    found, wanted = model.embed(mixed, gene_order=order), model.embed(anndata(), gene_order=order)
    if order != "input":
        np.testing.assert_array_equal(found, wanted)
    else:
        changed = np.abs(found - wanted).max(axis=1) > 1e-3
        assert changed[n_genes() > LENGTH].all()  # other genes are read
        assert changed[n_genes() > 4].all() == (model.family == "transcriptformer")


@given(**sizes_and_threads)
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_and_threads_do_not_change_which_cells_are_left_out(family: str, models: Models, **sizes: int) -> None:
    def kept() -> NDArray[np.float32]:
        with pytest.warns(UserWarning, match="were left out by the options"):
            return models[family].embed(anndata(), filter_outliers=1.5, min_expressed_genes=3)

    scfm.settings.reset()
    wanted = kept()
    for name, value in sizes.items():
        setattr(scfm.settings, name, value)
    close(kept(), wanted)


@given(**sizes_and_threads)
def test_a_seed_decides_the_order_of_genes(models: Models, **sizes: int) -> None:
    model, options = models["transcriptformer"], {"randomize_genes": True, "seed": 3}
    scfm.settings.reset()
    wanted = model.embed(anndata(), **options)
    for name, value in sizes.items():
        setattr(scfm.settings, name, value)
    close(model.embed(anndata(), **options), wanted)
    mixed = anndata()[:, ::-1].copy()
    close(model.embed(mixed, **options), wanted)
    close(model.embed(anndata()[::-1].copy(), **options), wanted[::-1])
    for other in (model.embed(anndata(), randomize_genes=True, seed=4), model.embed(anndata())):
        assert (np.abs(other - wanted).max(axis=1) > 1e-3)[n_genes() > 4].all()


def test_short_cells_cost_less(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    longest = LENGTH if model.family == "transcriptformer" else LENGTH + 1  # a network need not read the last gene
    wanted = int(np.minimum(n_genes() + 1, longest).sum())
    wanted += N_OBS - N_OBS // 3  # the assays that are known
    with caplog.at_level(logging.INFO, "scfm"), model.session(anndata()) as session:
        stats = session.run(Embed(session.model, session.options, ArraySink(N_OBS, model.n_features)))
    assert stats.n_tokens == wanted
    assert f"embedded {N_OBS} cells ({wanted} tokens, " in caplog.text


def test_other_verbs_leave_the_callers_data_alone(model: Model) -> None:
    adata = anndata()
    before = adata.copy()
    scfm.tl.embed(adata, model, pooling="gene", groupby="assay", key_added="genes")
    scfm.tl.gene_embeddings(adata, model)
    if model.implements("scorer"):
        scfm.tl.score(adata, model)
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    pd.testing.assert_frame_equal(adata.obs[["assay"]], before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert (list(adata.obsm), list(adata.varm)) == ([], ["genes"])
    assert set(adata.uns) - {"transcriptformer_score"} == {"genes"}


def first_genes(oracle: Oracle, most: int) -> list[tuple[Any, Any, int]]:
    """Tokens and counts of the first genes of each cell, and its assay."""
    tokens = np.array([oracle.vocabulary[gene] for gene in IDS])
    kept = [np.flatnonzero(row)[:most] for row in counts()]
    assays = [oracle.assays.get(label, 0) for label in anndata().obs["assay"]]
    return [(tokens[at], row[at], assay) for row, at, assay in zip(counts(), kept, assays, strict=True)]


@pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")
@pytest.mark.parametrize("compat", [None, "upstream"])
def test_scores_wherever_they_go(compat: Any, models: Models, oracle: Oracle, tmp_path: Path) -> None:
    model, arguments = models["transcriptformer"], {"compat": compat, "gene_key": "index"}
    cells = [
        transcriptformer_scores(oracle, *cell, forced_last=compat is not None) for cell in first_genes(oracle, LENGTH)
    ]
    wanted = [[-cell.count_nll.mean(), -cell.gene_nll.mean()] for cell in cells]
    plain, mdata = (
        anndata(),
        md.MuData({"rna": anndata(), "adt": ad.AnnData(np.ones((N_OBS, 2), np.float32), obs=anndata().obs[[]])}),
    )
    anndata().write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    copied: Any = scfm.tl.score(plain, model, copy=True, key_added="z", **arguments)
    assert (list(plain.obs), list(plain.uns)) == (["assay"], [])
    assert scfm.tl.score(plain, model, **arguments) is None
    scfm.tl.score(backed, model, **arguments)
    scfm.tl.score(mdata, model, modality="rna", key_added="z", **arguments)
    for data, name in ((copied, "z"), (mdata["rna"], "z"), (plain, model.family), (backed, model.family)):
        found = data.obs[[f"{name}_count_llh", f"{name}_gene_llh"]]
        close(found, wanted, 5e-5)
        assert set(found.dtypes) == {np.dtype("f4")}
        params = data.uns[f"{name}_score"]["params"]
        assert (params["compat"], params["n_cells"], params.get("pooling")) == (compat, N_OBS, None)
        assert list(data.uns) == [f"{name}_score"]


@pytest.mark.filterwarnings("default:.*cells express more than the")
@pytest.mark.parametrize("max_tokens", [None, 12])
def test_a_long_cell_is_its_first_genes(models: Models, oracle: Oracle, max_tokens: int | None) -> None:
    most = LENGTH if max_tokens is None else max_tokens - 1
    n_long = int((n_genes() > most).sum())
    adata, scfm.settings.block_rows = anndata(), 5
    with pytest.warns(
        UserWarning, match=f"^{n_long} of 24 cells express more than the {most} genes .*gene_order='exp"
    ) as found:
        scfm.tl.embed(adata, models["transcriptformer"], max_tokens=max_tokens)
    assert sum("express more" in str(one.message) for one in found) == 1
    assert adata.uns["transcriptformer"]["params"]["n_cells_truncated"] == n_long > 5
    wanted = [transcriptformer_cell(oracle, *cell) for cell in first_genes(oracle, most - 1)]
    close(adata.obsm["X_transcriptformer"], wanted, 1e-5)


def test_an_empty_cell_is_its_start(model: Model, oracle: Oracle) -> None:
    x = counts().copy()
    x[[3, 4, 5]] = 0
    adata = anndata(sparse.csr_matrix(x))
    with pytest.warns(UserWarning, match="^3 of 24 cells hold no gene of the model; their rows are those of an empty"):
        scfm.tl.embed(adata, model)
    found = adata.obsm[f"X_{model.family}"]
    assays = [oracle.assays.get(label, 0) for label in adata.obs["assay"][3:6]]
    wanted = np.array([transcriptformer_states(oracle, [], [], assay)[0].numpy() / LENGTH for assay in assays])
    close(found[3:6], wanted if model.family == "transcriptformer" else np.zeros((3, 12)))
    close(np.delete(found, [3, 4, 5], axis=0), np.delete(model.embed(anndata()), [3, 4, 5], axis=0))
    assert adata.uns[model.family]["params"]["n_cells_empty"] == 3


OPTIONS: dict[str, dict[str, Any]] = {
    "outliers": {"filter_outliers": 1.47},
    "short": {"min_expressed_genes": 15},
    "both": {"filter_outliers": 1.47, "min_expressed_genes": 15},
    "all": {"min_expressed_genes": 61},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_cells_that_are_left_out(model: Model, kind: str) -> None:
    options, totals = OPTIONS[kind], counts().sum(axis=1)
    width, least = options.get("filter_outliers", np.inf), options.get("min_expressed_genes", 0)
    kept = (np.abs(totals - totals.mean()) < width * totals.std()) & (n_genes() >= least)
    adata = anndata(sparse.csr_matrix(np.hstack([counts(), np.eye(N_OBS, 1) * 999])), [*IDS, "other"])
    with pytest.warns(
        UserWarning, match=f"^{int((~kept).sum())} of 24 cells were left out by the options filter_out"
    ) as found:
        scfm.tl.embed(adata, model, **options)
    assert sum("left out" in str(each.message) for each in found) == 1
    assert adata.uns[model.family]["params"]["n_cells_dropped"] == (~kept).sum() > 0
    values = adata.obsm[f"X_{model.family}"]
    assert np.isnan(values[~kept]).all()
    close(values[kept], model.embed(anndata())[kept])


def test_no_cells(model: Model) -> None:
    assert model.embed(anndata()[:0].copy(), filter_outliers=2, min_expressed_genes=3).shape == (0, model.n_features)
