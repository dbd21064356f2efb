"""A cell's embedding depends on that cell alone, and the caller's data are never touched."""

from __future__ import annotations

import hashlib
import logging
from functools import cache, partial
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
from scfm.testing import bert_hidden_states, rank_tokens, write_geneformer, write_sccello

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from scfm.model import FoundationModel

TOLERANCE = 5e-6
N_OBS, N_GENES, MAX_TOKENS, N_LAYERS = 24, 60, 24, 2
IDS = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]
UNKNOWN = "ENSG00000999999"
FORMS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": np.ascontiguousarray,
    "fortran": np.asfortranarray,
}
STORED = (
    "backed h5ad",
    "h5ad path",
    "backed view",
    "zarr path",
    "h5mu path",
    "MuData",
    "layer",
    "raw",
    "view",
    "int32",
)
few_examples = hypothesis_settings(max_examples=8, derandomize=True, database=None)


WRITE = {"V1": partial(write_geneformer, version=1), "V2": write_geneformer, "scCello": write_sccello}


@pytest.fixture(scope="session", params=WRITE)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FoundationModel:
    folder = tmp_path_factory.mktemp("model") / f"tiny-{request.param}"
    return scfm.model.load(WRITE[request.param](folder, n_genes=N_GENES, n_layers=N_LAYERS, max_tokens=MAX_TOKENS))


@pytest.fixture(autouse=True)
def default_settings() -> Iterator[None]:
    yield
    scfm.settings.reset()


@cache
def counts() -> NDArray[np.float32]:
    """Cells from short to cut off (half the genes are more than MAX_TOKENS), with many ties."""
    rng = np.random.default_rng(7)
    detected = np.linspace(0.02, 0.9, N_OBS)[:, None]
    values = (rng.random((N_OBS, N_GENES)) < detected) * rng.poisson(1.5, (N_OBS, N_GENES))
    values[:, 0] = 1  # no cell is empty
    return rng.permutation(values).astype(np.float32)


def anndata(values: Any = None, genes: list[str] | None = None) -> ad.AnnData:
    x = sparse.csr_matrix(counts()) if values is None else values
    obs = pd.DataFrame({"batch": pd.Categorical(["a", "b"] * (x.shape[0] // 2) + ["a"] * (x.shape[0] % 2))})
    obs.index = pd.Index([f"cell{i}" for i in range(x.shape[0])], name="barcode")
    return ad.AnnData(x, obs=obs, var=pd.DataFrame({"mean": 0.5}, index=IDS if genes is None else genes))


def tokens_of(model: FoundationModel, adata: ad.AnnData) -> list[list[int]]:
    """Tokens of each cell as they reach the network, by row."""
    found: dict[int, list[int]] = {}
    forward = model.forward

    def spy(network: torch.nn.Module, batch: Any, options: Any) -> torch.Tensor:
        parts = np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])
        found.update(zip(batch.rows.tolist(), (part.tolist() for part in parts), strict=True))
        return forward(network, batch, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "forward", spy)
        model.embed(adata)
    return [found[row] for row in range(adata.n_obs)]


def expected(model: FoundationModel, adata: ad.AnnData, layer: int, pooling: str) -> NDArray[np.float64]:
    """Embedding by the slow oracles, one cell at a time."""
    weights = {name: model.tensors[name].numpy() for name in model.tensors}
    config = {"layer_norm_eps": 1e-12, "num_attention_heads": 2, "num_hidden_layers": N_LAYERS}
    tokens = scfm.genes.align(adata.var, model.vocabulary).tokens
    x = adata.X.toarray() if sparse.issparse(adata.X) else adata.X
    specials = model.vocabulary.special_tokens
    first, last = int("<cls>" in specials), int("<eos>" in specials)
    rows = []
    for cell in rank_tokens(x, tokens, model.vocabulary, MAX_TOKENS):
        states = bert_hidden_states(cell, weights, config)[N_LAYERS + layer]
        rows.append(states[0] if pooling == "cls" else states[first : len(states) - last].mean(axis=0))
    return np.stack(rows)


def close(found: NDArray[Any], wanted: NDArray[Any], tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("layer", range(-N_LAYERS, 1))
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_equals_the_oracle_cell_by_cell(model: FoundationModel, pooling: str, layer: int) -> None:
    if pooling == "cls" and not model.has_cls:
        with pytest.raises(ValueError, match="pooling='cls' is not known to .*'mean', 'gene'"):
            model.embed(anndata(), pooling="cls")
        return
    adata = anndata()
    scfm.tl.embed(adata, model, pooling=pooling, hidden_layer=layer)
    close(adata.obsm[f"X_{model.family}"], expected(model, adata, layer, pooling), 1e-5)
    assert adata.obsm[f"X_{model.family}"].dtype == np.float32
    assert adata.obs_names.tolist() == [f"cell{i}" for i in range(N_OBS)]


def test_tokens_equal_the_oracle(model: FoundationModel) -> None:
    tokens = scfm.genes.align(anndata().var, model.vocabulary).tokens
    wanted = rank_tokens(counts(), tokens, model.vocabulary, MAX_TOKENS)
    assert tokens_of(model, anndata()) == [cell.tolist() for cell in wanted]


@few_examples
@given(order=st.permutations(range(N_OBS)))
def test_permuted_cells_give_permuted_rows(model: FoundationModel, order: list[int]) -> None:
    plain = anndata()
    mixed = plain[order].copy()
    tokens = tokens_of(model, plain)
    assert tokens_of(model, mixed) == [tokens[row] for row in order]
    close(model.embed(mixed), model.embed(plain)[order])


@few_examples
@given(order=st.permutations(range(N_GENES)))
def test_the_order_of_genes_does_not_matter(model: FoundationModel, order: list[int]) -> None:
    plain = anndata()
    mixed = plain[:, order].copy()
    assert tokens_of(model, mixed) == tokens_of(model, plain)
    np.testing.assert_array_equal(model.embed(mixed), model.embed(plain))


@few_examples
@given(
    block_rows=st.integers(1, N_OBS + 1),
    block_values=st.integers(1, N_OBS * N_GENES),
    batch_tokens=st.integers(1, N_OBS * MAX_TOKENS),
    threads=st.integers(1, 5),
)
def test_sizes_and_threads_do_not_matter(model: FoundationModel, **sizes: int) -> None:
    scfm.settings.reset()
    wanted = model.embed(anndata())
    for name, value in sizes.items():
        setattr(scfm.settings, name, value)
    close(model.embed(anndata()), wanted)


@few_examples
@given(rows=st.lists(st.integers(0, N_OBS - 1), min_size=1, max_size=4, unique=True))
def test_a_cell_alone_equals_the_cell_in_company(model: FoundationModel, rows: list[int]) -> None:
    adata = anndata()
    close(model.embed(adata[rows].copy()), model.embed(adata)[rows])


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
    if "h5ad" in kind or "backed" in kind:
        wide = ad.concat([adata, adata], index_unique="-") if "view" in kind else adata
        wide.write_h5ad(path)
        return {"h5ad path": path, "backed h5ad": ad.read_h5ad(path, backed="r")}.get(
            kind, ad.read_h5ad(path, backed="r")[N_OBS:]
        ), {}
    if kind == "view":
        return ad.concat([adata, adata], index_unique="-")[N_OBS:], {}
    other = anndata(sparse.csr_matrix(np.zeros_like(counts())))
    if kind == "layer":
        other.layers["counts"] = adata.X
        return other, {"layer": "counts"}
    if kind == "raw":
        other.raw = adata
        return other, {"use_raw": True}
    adata.X = adata.X.astype(np.int32)
    return adata, {}


@pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning", "ignore:From 0.4:FutureWarning")
@pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning")
@pytest.mark.parametrize("kind", [*FORMS, *STORED])
def test_every_container_gives_the_same_bits(model: FoundationModel, kind: str, tmp_path: Path) -> None:
    wanted = model.embed(anndata())
    data, arguments = (anndata(FORMS[kind](counts())), {}) if kind in FORMS else stored(kind, tmp_path)
    np.testing.assert_array_equal(model.embed(data, **arguments), wanted)


def test_genes_that_meet_in_one_token_are_summed(model: FoundationModel) -> None:
    first, second = counts(), counts()[::-1]
    genes = [f"{gene}.2" if i % 2 else gene for i, gene in enumerate(IDS)]
    split = anndata(sparse.csr_matrix(np.hstack([first, second])), [f"row{i}" for i in range(2 * N_GENES)])
    split.var["gene_ids"] = IDS + genes
    whole = anndata(sparse.csr_matrix(first + second))
    assert tokens_of(model, split) == tokens_of(model, whole)
    np.testing.assert_array_equal(model.embed(split), model.embed(whole))
    assert scfm.pp.match_genes(split, model).merged == N_GENES


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


def test_genes_outside_the_vocabulary_do_not_matter(model: FoundationModel) -> None:
    other = np.full((N_OBS, 1), 1000, np.float32)
    wider = anndata(sparse.csr_matrix(np.hstack([counts(), other])), [*IDS, UNKNOWN])
    np.testing.assert_array_equal(model.embed(wider), model.embed(anndata()))


def fingerprint(adata: ad.AnnData) -> str:
    """Hash of all that embedding must not touch, to the order of stored values."""
    digest = hashlib.sha256()
    for x in (adata.X, adata.layers["other"], adata.raw.X):
        for part in (x,) if isinstance(x, np.ndarray) else (x.data, x.indices, x.indptr):
            digest.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
    for frame in (adata.obs, adata.var, adata.raw.var):
        digest.update(frame.to_csv().encode() + str(frame.dtypes.to_dict()).encode())
    return digest.hexdigest()


@pytest.mark.parametrize("pooling", ["mean", "gene"])
@pytest.mark.parametrize("form", ["csr_matrix", "csc_matrix", "dense", "unsorted"])
def test_the_callers_data_are_not_touched(model: FoundationModel, form: str, pooling: str) -> None:
    x = FORMS.get(form, sparse.csr_matrix)(counts().copy())
    if form == "unsorted":
        for row in range(N_OBS):
            part = slice(x.indptr[row], x.indptr[row + 1])
            x.indices[part], x.data[part] = x.indices[part][::-1].copy(), x.data[part][::-1].copy()
        x.has_sorted_indices = False
    adata = anndata(x)
    adata.raw = adata.copy()
    adata.layers["other"] = sparse.csr_matrix(counts() * 2)
    adata.uns["geneformer_old"] = {"a": 1}
    before, arrays = fingerprint(adata), (adata.X, adata.obs, adata.var)
    scfm.tl.embed(adata, model, pooling=pooling)
    assert fingerprint(adata) == before
    assert all(now is then for now, then in zip((adata.X, adata.obs, adata.var), arrays, strict=True))
    slot = "varm" if pooling == "gene" else "obsm"
    assert (list(adata.obsm), list(adata.varm)) == ([], [f"X_{model.family}"])[:: -1 if slot == "obsm" else 1]
    assert set(adata.uns) == {"geneformer_old", model.family}


def test_gene_pooling_equals_a_mean_per_gene(model: FoundationModel) -> None:
    x = counts().copy()
    x[:, 5] = 0
    adata = anndata(sparse.csr_matrix(np.hstack([x, x[:, :1]])), [*IDS, UNKNOWN])
    weights = {name: model.tensors[name].numpy() for name in model.tensors}
    config = {"layer_norm_eps": 1e-12, "num_attention_heads": 2, "num_hidden_layers": N_LAYERS}
    tokens = scfm.genes.align(adata.var, model.vocabulary).tokens
    layer = model.card.hidden_layer - 1
    seen: dict[int, list[NDArray[np.float64]]] = {}
    for cell in rank_tokens(adata.X.toarray(), tokens, model.vocabulary, MAX_TOKENS):
        for token, state in zip(cell.tolist(), bert_hidden_states(cell, weights, config)[layer], strict=True):
            seen.setdefault(token, []).append(state)
    nothing = np.full(model.n_features, np.nan)
    wanted = np.stack([np.mean(seen[t], axis=0) if t in seen else nothing for t in tokens.tolist()])
    scfm.tl.embed(adata, model, pooling="gene", key_added="genes")
    close(adata.varm["genes"], wanted, 1e-5)
    assert np.isnan(adata.varm["genes"][[5, -1]]).all()
    assert adata.uns["genes"]["params"]["pooling"] == "gene"


def test_gene_means_of_raw_are_aligned_with_var_names(model: FoundationModel) -> None:
    raw = anndata()
    order = np.random.default_rng(0).permutation(N_GENES)[: N_GENES // 2]
    adata = anndata(sparse.csr_matrix(np.log1p(counts())))[:, order].copy()
    adata.var_names = [*adata.var_names[:-1], "only-in-var"]
    adata.raw = raw
    scfm.tl.embed(adata, model, pooling="gene")
    wanted = model.embed(raw, pooling="gene")[order]
    wanted[-1] = np.nan
    np.testing.assert_array_equal(adata.varm[f"X_{model.family}"], wanted)
    assert adata.uns[model.family]["params"]["matrix"] == "raw.X"


class Limited:
    """A network that takes no more than so many tokens at once."""

    def __init__(self, model: FoundationModel, limit: int, error: Exception) -> None:
        self.forward, self.limit, self.error, self.sizes = model.forward, limit, error, []

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


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_budget(
    model: FoundationModel, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = model.embed(anndata())
    scfm.settings.batch_tokens, scfm.settings.block_rows = 10 * MAX_TOKENS, 12
    limited = Limited(model, 6 * MAX_TOKENS, error)
    monkeypatch.setattr(model, "forward", limited)
    with caplog.at_level(logging.WARNING, "scfm"):
        close(model.embed(anndata()), wanted)
    first = next(record for record in caplog.records if record.levelno == logging.WARNING)
    assert "Out of memory: going on with" in first.getMessage()
    assert limited.limit // 2 < first.args[0] <= 5 * MAX_TOKENS
    assert max(limited.sizes) <= limited.limit


def test_the_budget_does_not_fall_below_what_fits(
    model: FoundationModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One block makes many batches of the first budget; each that fails must not halve the budget again."""
    adata = anndata(np.ones((64, N_GENES), np.float32))
    scfm.settings.batch_tokens = 8 * MAX_TOKENS
    monkeypatch.setattr(model, "forward", Limited(model, 6 * MAX_TOKENS, MemoryError()))
    with caplog.at_level(logging.WARNING, "scfm"):
        model.embed(adata)
    budgets = [record.args[0] for record in caplog.records if "Out of memory" in record.getMessage()]
    assert min(budgets) == 4 * MAX_TOKENS


def test_a_cell_that_does_not_fit_alone_is_an_error(model: FoundationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = anndata()
    monkeypatch.setattr(model, "forward", Limited(model, MAX_TOKENS - 1, MemoryError()))
    with pytest.raises(MemoryError, match=r"Cell \d+ with 24 tokens does not fit.*max_tokens.*dtype.*device"):
        scfm.tl.embed(adata, model)
    assert not adata.obsm
    assert not adata.uns


def test_another_runtime_error_is_not_taken_for_memory(model: FoundationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "forward", Limited(model, 0, RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        model.embed(anndata())
