"""What TranscriptFormer and ESM2-CE make of a cell depends on that cell alone, and the caller's data are not touched."""

from __future__ import annotations

import hashlib
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
from hypothesis import settings as hypothesis_settings
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
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from scfm.model import FoundationModel as Model

    Models = dict[str, Model]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*cells express more than the"),  # half of the cells do, by intent
    pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning", "ignore:From 0.4:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning"),
]
TOLERANCE = 5e-6
N_OBS, N_GENES, LENGTH = 24, 60, 20
IDS = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]
ASSAYS = ["10x 3' v3", "Smart-seq v4", "Drop-seq"]
FORMS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "int32": lambda x: sparse.csr_matrix(x.astype(np.int32)),
    "dense int64": lambda x: x.astype(np.int64),
    "unsorted": lambda x: unsorted(x),
}
STORED = ("backed h5ad", "h5ad path", "backed view", "zarr path", "h5mu path", "MuData", "layer", "raw", "view")
FAMILIES = ("transcriptformer", "esm2ce")
few_examples = hypothesis_settings(max_examples=8, derandomize=True, database=None)
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


def unsorted(values: NDArray[Any]) -> sparse.csr_matrix:
    """Columns of each row in falling order."""
    x = sparse.csr_matrix(values)
    for row in range(x.shape[0]):
        part = slice(x.indptr[row], x.indptr[row + 1])
        x.indices[part], x.data[part] = x.indices[part][::-1].copy(), x.data[part][::-1].copy()
    x.has_sorted_indices = False
    return x


def anndata(values: Any = None, genes: list[str] | None = None) -> ad.AnnData:
    x = sparse.csr_matrix(counts()) if values is None else values
    labels = np.resize(np.array(ASSAYS, dtype=object), x.shape[0])
    obs = pd.DataFrame({"assay": labels}, index=pd.Index([f"cell{i}" for i in range(x.shape[0])], name="barcode"))
    return ad.AnnData(x, obs=obs, var=pd.DataFrame({"mean": 0.5}, index=IDS if genes is None else genes))


def n_genes() -> NDArray[np.int64]:
    return (counts() > 0).sum(axis=1)


def close(found: Any, wanted: Any, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


@few_examples
@given(order=st.permutations(range(N_OBS)))
@pytest.mark.parametrize("family", FAMILIES)
def test_permuted_cells_give_permuted_rows(family: str, models: Models, order: list[int]) -> None:
    close(models[family].embed(anndata()[order].copy()), models[family].embed(anndata())[order])


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


@few_examples
@given(**sizes_and_threads)
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_and_threads_do_not_matter(family: str, models: Models, **sizes: int) -> None:
    def results() -> list[Any]:
        model, options = models[family], {"filter_outliers": 1.5, "min_expressed_genes": 3}
        scored = anndata()
        if family == "transcriptformer":
            scfm.tl.score(scored, model)
        with pytest.warns(UserWarning, match="were left out by the options"):
            kept = model.embed(anndata(), **options)
        states: Any = scfm.tl.gene_embeddings(anndata(), model)
        return [model.embed(anndata()), kept, states.todense(), scored.obs.drop(columns="assay").to_numpy(np.float32)]

    scfm.settings.reset()
    wanted = results()
    for name, value in sizes.items():
        setattr(scfm.settings, name, value)
    for here, there in zip(results(), wanted, strict=True):
        close(here, there)


@few_examples
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


@pytest.mark.parametrize("options", [{}, {"gene_order": "expression", "normalize_to_scale": 30}], ids=["plain", "more"])
def test_a_cell_alone_equals_the_cell_in_company(model: Model, options: dict[str, Any]) -> None:
    alone = [model.embed(anndata()[row].copy(), **options)[0] for row in range(N_OBS)]
    close(alone, model.embed(anndata(), **options))


def stored(kind: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The same counts in another place, with the arguments that point there."""
    adata = anndata()
    path = folder / f"a.{'h5ad' if 'h5ad' in kind or 'backed' in kind else kind.partition(' ')[0]}"
    if kind in ("h5mu path", "MuData"):
        mdata = md.MuData({"rna": adata, "adt": ad.AnnData(np.ones((N_OBS, 2), np.float32), obs=adata.obs[[]])})
        if kind == "h5mu path":
            mdata.write_h5mu(path)
        return (mdata if kind == "MuData" else path), {"modality": "rna"}
    if kind == "zarr path":
        with ad.settings.override(zarr_write_format=3):
            adata.write_zarr(path)
        return path, {}
    wide = ad.concat([adata[::-1], adata], index_unique="-", merge="same")
    if "h5ad" in kind or "backed" in kind:
        (wide if "view" in kind else adata).write_h5ad(path)
        if kind == "h5ad path":
            return path, {}
        backed = ad.read_h5ad(path, backed="r")
        return (backed[N_OBS:] if "view" in kind else backed), {}
    if kind == "view":
        return wide[N_OBS:], {}
    other = anndata(sparse.csr_matrix(np.zeros_like(counts())))
    if kind == "layer":
        other.layers["counts"] = adata.X
        return other, {"layer": "counts"}
    other.raw = adata
    return other, {"use_raw": True}


@pytest.mark.parametrize("kind", [*FORMS, *STORED])
def test_every_container_gives_the_same(model: Model, kind: str, tmp_path: Path) -> None:
    data, arguments = (anndata(FORMS[kind](counts())), {}) if kind in FORMS else stored(kind, tmp_path)
    close(model.embed(data, **arguments), model.embed(anndata()))


def test_short_cells_cost_less(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    longest = LENGTH if model.family == "transcriptformer" else LENGTH + 1  # a network need not read the last gene
    wanted = int(np.minimum(n_genes() + 1, longest).sum())
    wanted += N_OBS - N_OBS // 3  # the assays that are known
    with caplog.at_level(logging.INFO, "scfm"), model.session(anndata()) as session:
        stats = session.run(Embed(session.model, session.options, ArraySink(N_OBS, model.n_features)))
    assert stats.n_tokens == wanted
    assert f"embedded {N_OBS} cells ({wanted} tokens, " in caplog.text


def fingerprint(adata: ad.AnnData) -> str:
    """Hash of all that embedding must not touch, to the order of stored values."""
    digest = hashlib.sha256()
    for x in (adata.X, adata.layers["other"], adata.raw.X):
        for part in (x,) if isinstance(x, np.ndarray) else (x.data, x.indices, x.indptr):
            digest.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
    for frame in (adata.obs[["assay"]], adata.var, adata.raw.var):
        digest.update(frame.to_csv().encode() + str(frame.dtypes.to_dict()).encode())
    return digest.hexdigest()


@pytest.mark.parametrize("form", ["csr_matrix", "csc_matrix", "dense", "unsorted"])
def test_the_callers_data_are_not_touched(model: Model, form: str) -> None:
    adata = anndata(FORMS[form](counts().copy()))
    adata.raw = adata.copy()
    adata.layers["other"] = sparse.csr_matrix(counts() * 2)
    adata.uns["old"] = {"a": 1}
    before, x = fingerprint(adata), adata.X
    scfm.tl.embed(adata, model, normalize_to_scale=100, clip_counts=2)
    scfm.tl.embed(adata, model, pooling="gene", groupby="assay", key_added="genes")
    scfm.tl.gene_embeddings(adata, model)
    if model.implements("scorer"):
        scfm.tl.score(adata, model)
    assert fingerprint(adata) == before
    assert adata.X is x
    assert (list(adata.obsm), list(adata.varm)) == ([f"X_{model.family}"], ["genes"])
    assert set(adata.uns) - {"transcriptformer_score"} == {"old", model.family, "genes"}


class Limited:
    """A network that takes no more than so many tokens at once."""

    def __init__(self, model: Model, limit: int, error: Exception) -> None:
        self.forward, self.limit, self.error = model.forward, limit, error
        self.sizes: list[int] = []

    def __call__(self, network: torch.nn.Module, batch: Any, options: Any) -> torch.Tensor:
        if len(batch.tokens) > self.limit:
            raise self.error
        self.sizes.append(len(batch.tokens))
        return self.forward(network, batch, options)


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes."),
    MemoryError(),
)


@pytest.mark.parametrize("pooling", ["cell", "gene"])
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_budget(
    model: Model, pooling: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = model.embed(anndata(), pooling=pooling)
    scfm.settings.batch_tokens, scfm.settings.block_rows = 10 * LENGTH, 12
    limited = Limited(model, 4 * LENGTH, error)
    monkeypatch.setattr(model, "forward", limited)
    close(model.embed(anndata(), pooling=pooling), wanted)
    assert limited.limit // 2 < max(limited.sizes) <= limited.limit
    monkeypatch.setattr(model, "forward", Limited(model, LENGTH - 1, error))
    with pytest.raises(MemoryError, match=r"Cell \d+ with 2\d tokens does not fit.*max_tokens"):
        model.embed(anndata(), pooling=pooling)


def first_genes(oracle: Oracle, most: int) -> list[tuple[Any, Any, int]]:
    """Tokens and counts of the first genes of each cell, and its assay."""
    tokens = np.array([oracle.vocabulary[gene] for gene in IDS])
    kept = [np.flatnonzero(row)[:most] for row in counts()]
    assays = [oracle.assays.get(label, 0) for label in anndata().obs["assay"]]
    return [(tokens[at], row[at], assay) for row, at, assay in zip(counts(), kept, assays, strict=True)]


@pytest.mark.parametrize("compat", [None, "upstream"])
def test_scores_wherever_they_go(compat: Any, models: Models, oracle: Oracle, tmp_path: Path) -> None:
    model, arguments = models["transcriptformer"], {"compat": compat, "gene_key": "index"}
    cells = [
        transcriptformer_scores(oracle, *cell, forced_last=compat is not None) for cell in first_genes(oracle, LENGTH)
    ]
    wanted = [[-cell.count_nll.mean(), -cell.gene_nll.mean()] for cell in cells]
    plain, mdata, backed = anndata(), stored("MuData", tmp_path)[0], stored("backed h5ad", tmp_path)[0]
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
    assert len(found) == 1
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
    adata = anndata()[:0].copy()
    assert model.embed(adata).shape == (0, model.n_features)
    states: Any = scfm.tl.gene_embeddings(adata, model)
    assert states.shape == (0, N_GENES, model.n_features)
    assert model.embed(adata, filter_outliers=2, min_expressed_genes=3).shape == (0, model.n_features)
