"""Equal to the official TranscriptFormer code, on values that it wrote for a small random checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm._types import TokenBatch
from scfm.model.arguments import Arguments
from scfm.model.families.esm2ce import ESM2CE
from scfm.model.families.transcriptformer import TranscriptFormer
from scfm.tasks import Embed
from scfm.testing import TranscriptFormerOracle, transcriptformer_scores

from ..families import dense_states

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from scfm.model.families.transcriptformer.score import Scorer
    from scfm.run import RunStats

# Largest absolute (relative for mu, norm_llh and norm_counts) differences, from the README of the values.
CELL_TOLERANCE = 1e-5
GENE_TOLERANCE = 2e-5
LLH_TOLERANCE = 2e-5
GENE_LLH_TOLERANCE = 5e-5
RELATIVE_TOLERANCE = 1e-5
COUNTS_TOLERANCE = 1e-6
ESM2CE_TOLERANCE = 1e-6

L, PAD, START = 127, 1, 2
NORM: dict[str, Any] = {"normalize_to_scale": 10_000, "clip_counts": 100}
EMPTY, CUT = "hold no gene of the model", "express more than the 127 genes"
NO_COUNTS = "ignore:X of AnnData holds .* not counts:UserWarning"
OTHER_MATRIX = "ignore:X holds .* reading raw:UserWarning"
# The cells were chosen to be empty, or too long; one test asks for the warnings.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    *(pytest.mark.filterwarnings(f"ignore:.*{text}:UserWarning") for text in (EMPTY, CUT)),
]

Cells = list[tuple["NDArray[Any]", "NDArray[Any]"]]


@pytest.fixture(scope="module")
def folder(reference: Path) -> Path:
    return reference / "fixtures" / "transcriptformer"


@pytest.fixture(scope="module")
def read(folder: Path) -> Callable[[str], ad.AnnData]:
    held = {name: ad.read_h5ad(folder / f"{name}.h5ad") for name in ("input", "input_sort", "input_raw", "input_ood")}
    known = json.loads((folder / "checkpoint" / "vocabs" / "assay_vocab.json").read_text())
    for adata in held.values():  # other labels are unknown to upstream, but some are only spelled in another way
        adata.obs["assay"] = adata.obs["assay"].where(adata.obs["assay"].isin(known))
    return lambda name: held[name].copy()


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, NDArray[Any]]:
    return arrays(folder / "expected.npz")


@pytest.fixture(scope="module", params=["published", "converted"])
def checkpoint(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "published":
        return folder / "checkpoint"
    return scfm.model.convert(folder / "checkpoint", tmp_path_factory.mktemp("parity") / "converted")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> TranscriptFormer:
    model = scfm.model.load(checkpoint)
    assert type(model) is TranscriptFormer
    return model


@pytest.fixture(scope="module")
def esm2ce(checkpoint: Path) -> ESM2CE:
    model = scfm.model.load(checkpoint, family="esm2ce")
    assert isinstance(model, ESM2CE)
    return model


class Other(NamedTuple):
    """Genes of another species: how upstream takes them, or how it should have."""

    compat: Any
    files: Path
    expected: dict[str, NDArray[Any]]

    @property
    def arguments(self) -> dict[str, Any]:
        return {"compat": self.compat, "pretrained_embedding": self.files}


@pytest.fixture(params=["upstream", "corrected"])
def other(request: pytest.FixtureRequest, folder: Path) -> Other:
    compat = "upstream" if request.param == "upstream" else None
    return Other(compat, folder / "ood_embedding.h5", arrays(folder / f"expected_ood_{request.param}.npz"))


def encode(model: TranscriptFormer, data: ad.AnnData, **arguments: Any) -> tuple[Cells, list[int]]:
    """Genes and counts of each cell, and the token of its assay (−1 for none)."""
    with model.count_session(data, Arguments.of({"pooling": "gene", **arguments})) as session:
        encoder = session.model.encoder(session.source, session.genes, session.options)
        block = encoder(session.source.read(0, session.source.n_obs))
    assert block.values is not None
    cells, assays = [], []
    for start, stop in zip(block.offsets[:-1], block.offsets[1:], strict=True):
        tokens, counts = block.tokens[start:stop], block.values[start:stop]
        first = int(np.flatnonzero(tokens == START)[0])
        assert first in (0, 1)
        assert counts[: first + 1].tolist() == [1] * (first + 1)
        assays.append(int(tokens[0]) if first else -1)
        cells.append((tokens[first + 1 :], counts[first + 1 :]))
    return cells, assays


def unpadded(tokens: NDArray[Any], counts: NDArray[Any], pad: int = PAD) -> Cells:
    return [(row[row != pad], of_row[row != pad]) for row, of_row in zip(tokens, counts, strict=True)]


def assert_same(ours: Cells, theirs: Cells, rtol: float = 0.0) -> None:
    assert len(ours) == len(theirs)
    for (tokens, counts), (expected_tokens, expected_counts) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(tokens, expected_tokens)
        np.testing.assert_allclose(counts, expected_counts, rtol=rtol, atol=0)


def assert_close(actual: Any, expected: Any, atol: float = 0.0, rtol: float = 0.0) -> None:
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=rtol)


@dataclass
class Collected:
    """Takes what a scorer says about the genes of each cell, padded to the longest input."""

    n_cells: int
    values: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def write(self, batch: TokenBatch, output: Any) -> None:
        for row, part in zip(batch.rows, output.split(batch.lengths.tolist()), strict=True):
            genes = part[part[:, -1] > 0]
            for name, values in zip(("expected", "count", "gene"), genes.T, strict=False):
                array = self.values.setdefault(name, np.zeros((self.n_cells, L), np.float32))
                array[row, : len(genes)] = values.numpy()

    def end_block(self, stop: int, stats: RunStats) -> None:
        pass


class ByGene(Embed):
    """Scores of the genes of each cell, before they are averaged."""

    def make_forward(self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
        scorer = cast("Scorer", cast("TranscriptFormer", self._recipe).scorer(self._options, device, dtype))

        def forward(batch: TokenBatch) -> torch.Tensor:
            """The scores of the genes of each cell, and 1, at the start of its tokens; 0 behind them."""
            scores, lengths = scorer.by_gene(network, batch)
            output = torch.zeros(len(batch.tokens), 4)
            starts = np.repeat(np.cumsum(batch.lengths) - batch.lengths - np.cumsum(lengths) + lengths, lengths)
            at = torch.from_numpy(starts + np.arange(len(starts)))
            output[at] = torch.stack([scores.expected, scores.count, scores.gene, torch.ones(len(at))], dim=1)
            return output

        return forward


def scores_by_gene(model: TranscriptFormer, data: ad.AnnData, **arguments: Any) -> dict[str, NDArray[np.float32]]:
    with model.count_session(data, Arguments.of({"pooling": "gene", **arguments})) as session:
        sink = Collected(session.source.n_obs)
        session.run(ByGene(session.model, session.options, sink))
    return sink.values


def gene_states(
    model: TranscriptFormer, data: ad.AnnData, expected: dict[str, NDArray[Any]], **arguments: Any
) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """States in the order of upstream's entries, whether an entry is the first of its cell, and how many there are.

    Cells without an entry of upstream's are not counted.
    """
    states: Any = scfm.tl.gene_embeddings(data, model, **arguments)
    column = {name.split(".")[0]: i for i, name in enumerate(data.var["ensembl_id"])}
    cells = expected["cge_cell_indices"]
    columns = [column[name.decode()] for name in expected["cge_gene_names"]]
    found = dense_states(states)
    n_entries = int(np.isfinite(found[np.unique(cells)]).all(axis=2).sum())
    return found[cells, columns], np.diff(cells, prepend=-1) != 0, n_entries


def test_vocabulary(model: TranscriptFormer, expected: dict[str, NDArray[Any]]) -> None:
    names = sorted(model.vocabulary.special_tokens, key=lambda name: model.vocabulary.special_tokens[name])
    assert [*names, *model.vocabulary.genes] == [name.decode() for name in expected["vocab"]]


@pytest.mark.parametrize("compat", [None, "upstream"])
def test_tokens_and_counts(model: TranscriptFormer, read: Any, expected: dict[str, Any], compat: Any) -> None:
    cells, assays = encode(model, read("input"), compat=compat)
    assert_same(cells, unpadded(expected["tokens"], expected["counts"]))
    of_cells = expected["aux_tokens"][:, 0]
    np.testing.assert_array_equal(assays, np.where(of_cells == 0, -1, of_cells + model.config.vocab_size))


def test_labels_of_the_assay(model: TranscriptFormer, folder: Path, expected: dict[str, Any]) -> None:
    data, of_cells = ad.read_h5ad(folder / "input.h5ad"), expected["aux_tokens"][:, 0]
    with pytest.warns(UserWarning, match=r"cells have an assay in obs\['assay'\] that .* does not know.*10X 3' V3"):
        _, assays = encode(model, data, compat="upstream")
    np.testing.assert_array_equal(assays, np.where(of_cells == 0, -1, of_cells + model.config.vocab_size))
    with pytest.warns(UserWarning, match="'sci-CAR'.* are read without one"):
        _, assays = encode(model, data)
    at = data.obs["assay"].astype(str).tolist().index("10X 3' V3")
    assert assays[at] == model.card.aux_tokens["assay"]["10x 3' v3"] + model.config.vocab_size


@pytest.mark.parametrize("compat", [None, "upstream"])
@pytest.mark.parametrize("batch_tokens", [None, 200])
def test_cell_embeddings(
    model: TranscriptFormer, read: Any, expected: Any, compat: Any, batch_tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scfm.settings, "batch_tokens", batch_tokens)
    assert_close(model.embed(read("input"), compat=compat), expected["embeddings"], CELL_TOLERANCE)


def test_small_blocks(
    model: TranscriptFormer, read: Any, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scfm.settings, "block_rows", 7)
    assert_close(model.embed(read("input")), expected["embeddings"], CELL_TOLERANCE)


def test_warnings(model: TranscriptFormer, read: Any) -> None:
    data, genes = read("input"), set(model.vocabulary.genes)
    known = [name.partition(".")[0] in genes for name in data.var["ensembl_id"]]
    n_genes = (data.X[:, known] > 0).sum(axis=1)
    n_cut = int((n_genes > L).sum())
    assert (n_genes == 0).sum() == 2
    assert n_cut > 4
    with (
        pytest.warns(UserWarning, match=f"^2 of {data.n_obs} cells {EMPTY}"),
        pytest.warns(UserWarning, match=f"^{n_cut} of .*{CUT}"),
    ):
        model.embed(data)


def test_bfloat16(model: TranscriptFormer, read: Any, expected: dict[str, Any]) -> None:
    values = model.embed(read("input"), dtype="bfloat16")
    difference = np.abs(values - expected["embeddings"])
    assert difference.max() < 0.05
    assert np.median(difference) < 0.005


@pytest.mark.parametrize("compat", [None, "upstream"])
def test_scaled_counts(model: TranscriptFormer, read: Any, expected: dict[str, Any], compat: Any) -> None:
    data = read("input")
    cells, _ = encode(model, data, compat=compat, **NORM)
    assert_same(cells, unpadded(expected["tokens"], expected["norm_counts"]), COUNTS_TOLERANCE)
    assert_close(model.embed(data, compat=compat, **NORM), expected["norm_embeddings"], CELL_TOLERANCE)


@pytest.mark.parametrize("compat", [None, "upstream"])
@pytest.mark.filterwarnings(NO_COUNTS)  # fractions tell equal counts apart
def test_sorted_genes(model: TranscriptFormer, read: Any, expected: dict[str, Any], compat: Any) -> None:
    data = read("input_sort")
    assert data.obs_names.tolist() == [name.decode() for name in expected["sort_obs_names"]]
    cells, _ = encode(model, data, compat=compat, sort_genes=True)
    assert_same(cells, unpadded(expected["sort_tokens"], expected["sort_counts"]))
    for option in ({"sort_genes": True}, {"gene_order": "expression"}):
        values = model.embed(data, compat=compat, **option)
        assert_close(values, expected["sort_embeddings"], CELL_TOLERANCE)


def test_sorted_genes_with_ties(model: TranscriptFormer, read: Any, expected: dict[str, Any]) -> None:
    """Upstream's order within a tie is an accident; which genes lie above the last kept count is not."""
    cells, _ = encode(model, read("input"), compat="upstream", sort_genes=True)
    theirs = unpadded(expected["sortties_tokens"], expected["sortties_counts"])
    for (tokens, counts), (expected_tokens, expected_counts) in zip(cells, theirs, strict=True):
        np.testing.assert_array_equal(counts, expected_counts)
        above = counts > counts.min(initial=np.inf) if len(counts) == L else counts > 0
        assert set(tokens[above].tolist()) == set(expected_tokens[above].tolist())


def test_embeddings_of_given_tokens(model: TranscriptFormer, expected: dict[str, Any]) -> None:
    network = model.networks(model.n_layers, [torch.device("cpu")], torch.float32)[0]
    options = Arguments(compat="upstream").resolved(model)
    cells = unpadded(expected["sortties_tokens"], expected["sortties_counts"])
    tokens: list[NDArray[Any]] = []
    counts: list[NDArray[Any]] = []
    for (genes, of_genes), assay in zip(cells, expected["aux_tokens"][:, 0], strict=True):
        head = [model.config.vocab_size + assay, START] if assay else [START]
        tokens.append(np.concatenate([head, genes[: L - 1]]).astype(np.int64))
        counts.append(np.concatenate([np.ones(len(head)), of_genes[: L - 1]]).astype(np.float32))
    lengths = np.array([len(cell) for cell in tokens])
    batch = TokenBatch(np.arange(len(cells)), np.concatenate(tokens), lengths, np.concatenate(counts))
    with torch.inference_mode():
        values = model.forward(network, batch, options)
    assert_close(values.numpy(), expected["sortties_embeddings"], CELL_TOLERANCE)


@pytest.mark.parametrize("compat", [None, "upstream"])
@pytest.mark.parametrize("use_raw", [None, True, False])
@pytest.mark.filterwarnings(NO_COUNTS, OTHER_MATRIX)  # X is logarithmic
def test_raw(model: TranscriptFormer, read: Any, expected: dict[str, Any], compat: Any, use_raw: bool | None) -> None:
    data = read("input_raw")
    assert data.obs_names.tolist() == [name.decode() for name in expected["raw_obs_names"]]
    cells, _ = encode(model, data, compat=compat, use_raw=use_raw)
    name = f"raw{use_raw}"
    assert_same(cells, unpadded(expected[f"{name}_tokens"], expected[f"{name}_counts"]))
    values = model.embed(data, compat=compat, use_raw=use_raw)
    assert_close(values, expected[f"{name}_embeddings"], CELL_TOLERANCE)


@pytest.mark.parametrize("compat", [None, "upstream"])
def test_esm2ce(esm2ce: ESM2CE, read: Any, expected: dict[str, Any], compat: Any) -> None:
    values = esm2ce.embed(read("input"), compat=compat)
    assert_close(values, expected["esm2ce_embeddings"], ESM2CE_TOLERANCE)


def test_gene_embeddings(model: TranscriptFormer, read: Any, expected: dict[str, Any]) -> None:
    """Upstream's entry of a gene is the state before it was read, which is ours of the gene before it."""
    data, theirs = read("input"), expected["cge_embeddings"]
    before, _, n_entries = gene_states(model, data, expected, compat="upstream")
    assert n_entries == len(theirs)
    assert_close(before, theirs, GENE_TOLERANCE)
    after, is_first, n_entries = gene_states(model, data, expected)
    assert n_entries == len(theirs)
    assert_close(after[:-1][~is_first[1:]], theirs[1:][~is_first[1:]], GENE_TOLERANCE)
    assert np.abs(after - theirs).max(axis=1).min() > 0.01


def test_likelihoods(model: TranscriptFormer, read: Any, expected: dict[str, Any]) -> None:
    data = read("input")
    scfm.tl.score(data, model, compat="upstream")
    assert_close(-data.obs["transcriptformer_count_llh"], expected["llh"], LLH_TOLERANCE)
    is_gene = expected["tokens"] != PAD
    n_genes = np.where(is_gene.any(axis=1), is_gene.sum(axis=1), np.nan)
    means = expected["gene_llh"].sum(axis=1) / n_genes
    assert_close(-data.obs["transcriptformer_gene_llh"], means, GENE_LLH_TOLERANCE)


def test_likelihoods_by_gene(model: TranscriptFormer, read: Any, expected: dict[str, Any]) -> None:
    ours = scores_by_gene(model, read("input"), compat="upstream")
    mu = np.nan_to_num(expected["mu"])  # NaN where there is no gene
    assert_close(ours["expected"], mu, rtol=RELATIVE_TOLERANCE)
    assert_close(-ours["gene"], expected["gene_llh"], GENE_LLH_TOLERANCE)


def test_likelihoods_of_the_last_gene(model: TranscriptFormer, read: Any, expected: Any, folder: Path) -> None:
    """By default the last gene of a full cell is scored as what it is, and all others as upstream does."""
    ours, theirs = (scores_by_gene(model, read("input"), compat=compat) for compat in (None, "upstream"))
    full = (expected["tokens"] != PAD).all(axis=1)
    assert full.sum() > 4
    assert_close(ours["expected"], theirs["expected"], rtol=RELATIVE_TOLERANCE)
    for name in ("count", "gene"):
        assert_close(ours[name][:, :-1], theirs[name][:, :-1], LLH_TOLERANCE)
        assert_close(ours[name][~full], theirs[name][~full], LLH_TOLERANCE)
    oracle = TranscriptFormerOracle.load(folder / "checkpoint")
    for cell in np.flatnonzero(full)[:4]:
        given = expected["tokens"][cell], expected["counts"][cell], int(expected["aux_tokens"][cell, 0])
        _, count, gene = transcriptformer_scores(oracle, *given, forced_last=False)
        assert_close(-ours["count"][cell], count, GENE_LLH_TOLERANCE, RELATIVE_TOLERANCE)
        assert_close(-ours["gene"][cell], gene, GENE_LLH_TOLERANCE)
        assert abs(ours["gene"][cell, -1] - theirs["gene"][cell, -1]) > 0.1


def test_likelihoods_of_scaled_counts(model: TranscriptFormer, read: Any, expected: dict[str, Any]) -> None:
    data = read("input")
    scfm.tl.score(data, model, compat="upstream", **NORM)
    found = -data.obs["transcriptformer_count_llh"].to_numpy()
    theirs = np.where(np.isnan(expected["llh"]), np.nan, expected["norm_llh"])
    assert_close(found, theirs, rtol=RELATIVE_TOLERANCE)


def test_other_genes(model: TranscriptFormer, esm2ce: ESM2CE, read: Any, other: Other) -> None:
    data = read("input_ood")
    cells, assays = encode(model, data, **other.arguments)
    if other.compat is None:
        theirs = unpadded(other.expected["tokens"], other.expected["counts"])
    else:  # padding is read like genes
        theirs = list(zip(other.expected["tokens"], other.expected["counts"], strict=True))
    assert_same(cells, theirs)
    of_cells = other.expected["aux_tokens"][:, 0]
    np.testing.assert_array_equal(assays, np.where(of_cells == 0, -1, of_cells + len(other.expected["vocab"])))
    assert_close(model.embed(data, **other.arguments), other.expected["embeddings"], CELL_TOLERANCE)
    values = esm2ce.embed(data, **other.arguments)
    assert_close(values, other.expected["esm2ce_embeddings"], ESM2CE_TOLERANCE)


def test_gene_embeddings_of_other_genes(model: TranscriptFormer, read: Any, other: Other) -> None:
    states, is_first, n_entries = gene_states(model, read("input_ood"), other.expected, **other.arguments)
    theirs = other.expected["cge_embeddings"]
    assert n_entries == len(theirs)
    if other.compat is None:
        states, theirs = states[:-1][~is_first[1:]], theirs[1:][~is_first[1:]]
    assert_close(states, theirs, GENE_TOLERANCE)


def test_likelihoods_of_other_genes(model: TranscriptFormer, read: Any, folder: Path) -> None:
    """Without a meaning: the count and gene heads know other genes under these tokens."""
    data, files = read("input_ood"), folder / "ood_embedding.h5"
    expected = arrays(folder / "expected_ood_upstream.npz")
    ours = scores_by_gene(model, data, compat="upstream", pretrained_embedding=files)
    assert_close(ours["expected"], expected["mu"], rtol=RELATIVE_TOLERANCE)
    assert_close(-ours["gene"], expected["gene_llh"], GENE_LLH_TOLERANCE)
    scfm.tl.score(data, model, compat="upstream", pretrained_embedding=files)
    assert_close(-data.obs["transcriptformer_count_llh"], expected["llh"], LLH_TOLERANCE)
    with pytest.raises(ValueError, match="cannot be scored"):
        scfm.tl.score(data, model, pretrained_embedding=files)
