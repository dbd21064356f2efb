"""Property tests over all families: the tokens and the embedding of a cell depend on that cell alone.

:func:`scfm.testing.check_model` checks this on a few cells; these tests compare tokens, too, and draw orders, sizes and
subsets. That containers give the same counts is tested in ``tests/read``.
"""

from __future__ import annotations

import logging
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import scfm
from scfm.testing import check_model
from scfm.testing._rules import RULES
from tests.rounding import close

from .families import IDS, LONGEST, N_GENES, TINY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scfm.model import FoundationModel

    Models = dict[str, FoundationModel]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*cells express more than the"),  # half of the cells do, by intent
    pytest.mark.filterwarnings("ignore:X holds .* reading raw"),
]
N_OBS = 24
IN_ORDER = ("TranscriptFormer", "ESM2-CE")
OFFER = {name: [other for other, tiny in TINY.items() if name in tiny.offers] for name in ("genes", "scores")}
sizes_and_threads = {
    "block_rows": st.integers(1, N_OBS + 1),
    "block_values": st.integers(1, N_OBS * N_GENES),
    "batch_tokens": st.integers(1, N_OBS * LONGEST),
    "threads": st.integers(1, 5),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.load(folder / name) for name, tiny in TINY.items()}


@pytest.fixture(params=TINY)
def model(request: pytest.FixtureRequest, models: Models) -> FoundationModel:
    return models[request.param]


@pytest.fixture(autouse=True)
def default_settings() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    scfm.settings.reset()


@cache
def counts() -> NDArray[np.float32]:
    """Cells from short to cut off (half the genes are more than LONGEST), with many ties."""
    rng = np.random.default_rng(7)
    detected = np.linspace(0.02, 0.9, N_OBS)[:, None]
    values = (rng.random((N_OBS, N_GENES)) < detected) * rng.poisson(1.5, (N_OBS, N_GENES))
    values[:, 0] = 1  # no cell is empty
    return rng.permutation(values).astype(np.float32)


def genes_of(model: FoundationModel) -> list[str]:
    return model.vocabulary.genes[:N_GENES].tolist() if model.family == "scfm_mini" else IDS


def anndata(model: FoundationModel, values: Any = None, genes: list[str] | None = None) -> ad.AnnData:
    x = sparse.csr_matrix(counts()) if values is None else values
    obs = pd.DataFrame({"assay": np.resize(np.array(["10x 3' v3", "Smart-seq v4", "unknown"], object), x.shape[0])})
    obs.index = pd.Index([f"cell{i}" for i in range(x.shape[0])], name="barcode")
    return ad.AnnData(x, obs=obs, var=pd.DataFrame({"mean": 0.5}, index=genes_of(model) if genes is None else genes))


class Found(NamedTuple):
    """Tokens and embeddings of cells."""

    tokens: list[list[int]]
    values: NDArray[np.float32]


def embed(model: FoundationModel, data: Any = None, **arguments: Any) -> Found:
    """The embeddings, and the tokens of each cell as they reach the network."""
    found: dict[int, list[int]] = {}
    forward = model.forward

    def spy(network: torch.nn.Module, batch: Any, options: Any) -> torch.Tensor:
        parts = np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])
        found.update(zip(batch.rows.tolist(), (part.tolist() for part in parts), strict=True))
        return forward(network, batch, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "forward", spy)
        values = model.embed(anndata(model) if data is None else data, device="cpu", **arguments)
    return Found([found[row] for row in sorted(found)], values)


def same_bits(found: Found, wanted: Found) -> None:
    assert found.tokens == wanted.tokens
    np.testing.assert_array_equal(found.values, wanted.values)


@pytest.fixture(scope="session")
def plain(models: Models) -> dict[str, Found]:
    """What comes of the cells as they are."""
    return {name: embed(model) for name, model in models.items()}


@given(order=st.permutations(range(N_OBS)))
@pytest.mark.parametrize("name", TINY)
def test_permuted_cells_give_permuted_rows(
    name: str, models: Models, plain: dict[str, Found], order: list[int]
) -> None:
    mixed = embed(models[name], anndata(models[name])[order].copy())
    assert mixed.tokens == [plain[name].tokens[row] for row in order]
    close(mixed.values, plain[name].values[order])


@given(order=st.permutations(range(N_GENES + 1)))
@pytest.mark.parametrize("name", TINY)
def test_neither_order_nor_unknown_genes_matter(name: str, models: Models, order: list[int]) -> None:
    model, options = models[name], TINY[name].options
    wider = np.hstack([counts(), np.full((N_OBS, 1), 1000, np.float32)])
    adata = anndata(model, sparse.csr_matrix(wider), [*genes_of(model), "ENSG00000999999"])
    same_bits(embed(model, adata[:, order].copy(), **options), embed(model, **options))


def everything(model: FoundationModel, offers: frozenset[str]) -> list[Any]:
    """Tokens and all that the model offers."""
    adata = anndata(model)
    found: list[Any] = list(embed(model, adata))
    if "genes" in offers:
        states: Any = scfm.tl.gene_embeddings(adata, model, device="cpu")
        found += [states.X, model.embed(adata, pooling="gene", groupby="assay", device="cpu")]
    if "scores" in offers:
        scfm.tl.score(adata, model, device="cpu")
        found.append(adata.obs.drop(columns="assay").to_numpy(np.float32))
    return found


@pytest.fixture(scope="session")
def all_plain(models: Models) -> dict[str, list[Any]]:
    return {name: everything(model, TINY[name].offers) for name, model in models.items()}


@given(**sizes_and_threads)
@pytest.mark.parametrize("name", TINY)
def test_sizes_and_threads_do_not_matter(
    name: str, models: Models, all_plain: dict[str, list[Any]], **sizes: int
) -> None:
    for setting, value in sizes.items():
        setattr(scfm.settings, setting, value)
    tokens, *found = everything(models[name], TINY[name].offers)
    assert tokens == all_plain[name][0]
    for here, there in zip(found, all_plain[name][1:], strict=True):
        close(here, there)


@given(rows=st.lists(st.integers(0, N_OBS - 1), min_size=1, max_size=4, unique=True))
@pytest.mark.parametrize("name", TINY)
def test_a_cell_alone_equals_the_cell_in_company(
    name: str, models: Models, plain: dict[str, Found], rows: list[int]
) -> None:
    alone = embed(models[name], anndata(models[name])[rows].copy())
    assert alone.tokens == [plain[name].tokens[row] for row in rows]
    close(alone.values, plain[name].values[rows])


@pytest.mark.parametrize("rule", ["batches", "unchanged input"])
@pytest.mark.parametrize("name", IN_ORDER)
@pytest.mark.parametrize(
    "options",
    [{"gene_order": "expression", "normalize_to_scale": 30}, {"normalize_to_scale": 100, "clip_counts": 2}],
    ids=lambda options: " ".join(options),
)
def test_options_that_change_counts_keep_the_rules(
    name: str, options: dict[str, Any], rule: str, models: Models
) -> None:
    assert check_model(models[name], exempt=set(RULES) - {rule}, **options) == (rule,)


def test_genes_that_meet_in_one_token_are_summed(model: FoundationModel) -> None:
    first, second, ids = counts(), counts()[::-1], genes_of(model)
    split = anndata(model, sparse.csr_matrix(np.hstack([first, second])), [f"row{i}" for i in range(2 * N_GENES)])
    split.var["gene_ids"] = ids + [f"{gene}.2" if i % 2 else gene for i, gene in enumerate(ids)]
    same_bits(embed(model, split), embed(model, anndata(model, sparse.csr_matrix(first + second))))
    assert scfm.pp.match_genes(split, model).merged == N_GENES


def test_results_are_named_after_the_family(model: FoundationModel) -> None:
    adata = anndata(model)
    adata.uns[f"{model.family}_old"] = {"a": 1}
    scfm.tl.embed(adata, model, device="cpu")
    assert (list(adata.obsm), list(adata.varm)) == ([f"X_{model.family}"], [])
    assert set(adata.uns) == {f"{model.family}_old", model.family}


@pytest.mark.parametrize("name", OFFER["genes"])
def test_gene_means_of_raw_are_aligned_with_var_names(name: str, models: Models) -> None:
    model, raw = models[name], anndata(models[name])
    order = np.random.default_rng(0).permutation(N_GENES)[: N_GENES // 2]
    adata = anndata(model, sparse.csr_matrix(np.log1p(counts())))[:, order].copy()
    adata.var_names = [*adata.var_names[:-1], "only-in-var"]
    adata.raw = raw
    with pytest.warns(
        UserWarning, match="1 of 30 genes in var_names are not in raw.X by any name, such as 'only-in-var'"
    ):
        scfm.tl.embed(adata, model, pooling="gene", device="cpu")
    wanted = model.embed(raw, pooling="gene", device="cpu")[order]
    wanted[-1] = np.nan
    np.testing.assert_array_equal(adata.varm[f"X_{model.family}"], wanted)
    assert not adata.obsm
    assert adata.uns[model.family]["params"]["matrix"] == "raw.X"


def test_no_cells(model: FoundationModel) -> None:
    adata = anndata(model)[:0].copy()
    assert model.embed(adata).shape == (0, model.n_features)
    if "gene" in model.poolings:
        states: Any = scfm.tl.gene_embeddings(adata, model)
        assert states.shape == (0, model.n_features)
        assert len(states.obs["gene"].cat.categories) == N_GENES


class Limited:
    """A network that takes no more than so many tokens at once."""

    def __init__(self, model: FoundationModel, limit: int, error: Exception) -> None:
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


two_families = pytest.mark.parametrize("model", ["Geneformer V2", "TranscriptFormer"], indirect=True)


@pytest.fixture
def short(model: FoundationModel) -> partial[NDArray[np.float32]]:
    """Embed with no more than LONGEST tokens a cell."""
    return partial(model.embed, device="cpu", max_tokens=min(LONGEST, model.card.max_tokens))


def longest(model: FoundationModel, pooling: str | None = None) -> int:
    return max(map(len, embed(model, pooling=pooling, max_tokens=min(LONGEST, model.card.max_tokens)).tokens))


@two_families
@pytest.mark.parametrize("pooling", [None, "gene"])
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_budget(
    model: FoundationModel,
    short: partial[NDArray[np.float32]],
    pooling: str | None,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    most, wanted = longest(model, pooling), short(anndata(model), pooling=pooling)
    scfm.settings.batch_tokens, scfm.settings.block_rows = 10 * most, 12
    limited = Limited(model, 4 * most, error)
    monkeypatch.setattr(model, "forward", limited)
    with caplog.at_level(logging.WARNING, "scfm"):
        close(short(anndata(model), pooling=pooling), wanted)
    first = next(record for record in caplog.records if record.levelno == logging.WARNING)
    assert "Out of memory: continuing with" in first.getMessage()
    assert limited.limit // 2 < max(limited.sizes) <= limited.limit
    assert first.args[0] <= 5 * most


@two_families
def test_the_budget_does_not_fall_below_what_fits(
    model: FoundationModel,
    short: partial[NDArray[np.float32]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One block makes many batches of the first budget; each that fails must not halve the budget again."""
    adata, most = anndata(model, np.ones((64, N_GENES), np.float32)), longest(model)
    scfm.settings.batch_tokens = 8 * most
    monkeypatch.setattr(model, "forward", Limited(model, 6 * most, MemoryError()))
    with caplog.at_level(logging.WARNING, "scfm"):
        short(adata)
    budgets = [record.args[0] for record in caplog.records if "Out of memory" in record.getMessage()]
    assert min(budgets) == 4 * most


@two_families
@pytest.mark.parametrize("pooling", [None, "gene"])
def test_a_cell_that_does_not_fit_alone_is_an_error(
    model: FoundationModel, pooling: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata, most = anndata(model), longest(model, pooling)
    monkeypatch.setattr(model, "forward", Limited(model, most - 1, MemoryError()))
    with pytest.raises(MemoryError, match=rf"Cell \d+ with {most} tokens does not fit.*max_tokens.*dtype.*device"):
        scfm.tl.embed(adata, model, pooling=pooling, max_tokens=min(LONGEST, model.card.max_tokens), device="cpu")
    assert not list(adata.obsm) + list(adata.varm) + list(adata.uns)


@two_families
def test_another_runtime_error_is_not_taken_for_memory(model: FoundationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "forward", Limited(model, 0, RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        model.embed(anndata(model))
