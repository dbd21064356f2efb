"""Equal to the official Geneformer code, on values that it wrote for small random checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest

import scfm
from scfm.genes import match_upstream
from scfm.model.arguments import Arguments
from scfm.model.families.geneformer import Geneformer
from scfm.read import open_counts

if TYPE_CHECKING:
    from pathlib import Path

# Largest absolute differences, from the README of the values.
CELL_TOLERANCE = 5e-6
HIDDEN_TOLERANCE = 1e-5
LOGITS_TOLERANCE = 1e-5


@dataclass
class Case:
    version: str
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "fixtures" / "geneformer" / self.version

    @cached_property
    def expected(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "expected.npz", allow_pickle=False) as file:
            return dict(file)

    @cached_property
    def model(self) -> Geneformer:
        model = scfm.model.load(self.folder, dictionaries=self.root / "dictionaries" / self.version.upper())
        assert isinstance(model, Geneformer)
        return model

    @property
    def embedded(self) -> np.ndarray:
        """Cells with embeddings, of the ones that were kept."""
        return self.expected.get("embedded", np.arange(len(self.expected["kept_cells"])))

    def read(self, name: str) -> ad.AnnData:
        return ad.read_h5ad(self.folder / f"{name}.h5ad")

    def sequence(self, prefix: str, cell: int) -> slice:
        offsets = self.expected[f"{prefix}_offsets"]
        return slice(offsets[cell], offsets[cell + 1])


@pytest.fixture(scope="module")
def cases(reference: Path) -> dict[str, Case]:
    return {version: Case(version, reference) for version in ("v1", "v2")}


@pytest.fixture(params=["v1", "v2"])
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def encode(case: Case, data: ad.AnnData, compat: str | None) -> list[np.ndarray]:
    options = Arguments(compat=compat).resolved(case.model)
    with open_counts(data) as source:
        genes = case.model.match(source.var, None, options)
        block = case.model.encoder(source, genes, options)(source.read(0, source.n_obs))
    return np.split(block.tokens, block.offsets[1:-1])


@pytest.mark.parametrize(
    ("version", "name", "prefix"),
    [
        ("v1", "input", "upstream_tok"),
        ("v1", "edge", "upstream_edge_tok"),
        ("v2", "input", "upstream_tok"),
        ("v2", "edge", "upstream_edge_tok"),
        ("v2", "input_plain", "upstream_plain_tok"),
    ],
)
def test_tokens(cases: dict[str, Case], version: str, name: str, prefix: str) -> None:
    case = cases[version]
    cells = encode(case, case.read(name), "upstream")
    rows = case.expected[f"{prefix}_cell_index"]
    for k, row in enumerate(rows):
        at = case.sequence(prefix, k)
        expected, tied = case.expected[f"{prefix}_tokens"][at], case.expected[f"{prefix}_tie_exact"][at]
        np.testing.assert_array_equal(cells[row][~tied], expected[~tied])
        np.testing.assert_array_equal(np.sort(cells[row]), np.sort(expected))


def test_default_tokens_differ_from_upstream_only_where_values_nearly_tie(cases: dict[str, Case]) -> None:
    case = cases["v2"]
    data = case.read("input_plain")
    known = match_upstream(data.var, case.model.vocabulary).tokens >= 0
    cells = encode(case, data[:, known].copy(), None)  # versions, symbols and the like match by default only
    for k, row in enumerate(case.expected["upstream_plain_tok_cell_index"]):
        at = case.sequence("upstream_plain_tok", k)
        near = case.expected["upstream_plain_tok_tie_near"][at]
        np.testing.assert_array_equal(cells[row][~near], case.expected["upstream_plain_tok_tokens"][at][~near])


def test_kept_counts(case: Case) -> None:
    """``counts`` of keep_counts=True are counts per 10,000: from our totals and the float32 steps of the source."""
    data = case.read("input")
    tokens = match_upstream(data.var, case.model.vocabulary).tokens
    offsets = case.expected["upstream_keepcounts_offsets"]
    kept = case.expected["upstream_keepcounts_counts"]
    for k in range(len(offsets) - 1):
        row = case.expected["kept_cells"][k]
        cell = data.X[row].tocoo()
        summed = np.zeros(case.model.vocabulary.size)
        known = tokens[cell.col] >= 0
        np.add.at(summed, tokens[cell.col][known], cell.data[known])
        per_10k = summed / data.obs["n_counts"].iloc[row] * 10_000
        sequence = case.expected["upstream_tok_tokens"][case.sequence("upstream_tok", k)]
        np.testing.assert_allclose(per_10k[sequence], kept[offsets[k] : offsets[k + 1]], rtol=1e-6)


@pytest.mark.parametrize(("layer", "suffix"), [(-1, "lm1"), (0, "l0")])
@pytest.mark.parametrize(
    ("version", "pooling", "mode"), [("v1", "mean", "cell"), ("v2", "mean", "cell"), ("v2", "cls", "cls")]
)
def test_cell_embeddings(
    cases: dict[str, Case], version: str, pooling: str, mode: str, layer: int, suffix: str
) -> None:
    case = cases[version]
    expected = case.expected[f"upstream_emb_{mode}_{suffix}"]
    data = case.read("input")[case.expected["kept_cells"][case.embedded]].copy()
    values = case.model.embed(data, compat="upstream", pooling=pooling, hidden_layer=layer)
    np.testing.assert_allclose(values, expected, atol=CELL_TOLERANCE, rtol=0)


def test_gene_embeddings(case: Case) -> None:
    data = case.read("input")
    rows = case.expected["kept_cells"][case.expected["gene_mode_rows"]]
    embedding = case.model.run(data[rows].copy(), Arguments(compat="upstream", pooling="gene"))
    tokens = match_upstream(data.var, case.model.vocabulary).tokens
    by_token = {token: values for token, values in zip(tokens.tolist(), embedding.values, strict=True) if token >= 0}
    specials = set(case.model.vocabulary.special_tokens.values())
    for token, expected in zip(
        case.expected["gene_tokens"].tolist(), case.expected["upstream_gene_emb_lm1"], strict=True
    ):
        if token not in specials:
            np.testing.assert_allclose(by_token.pop(token), expected, atol=HIDDEN_TOLERANCE, rtol=0)
    for token in case.expected.get("gene_tokens_left_out", np.empty(0)).tolist():
        if token not in specials:
            assert np.isfinite(by_token.pop(token)).all()
    assert by_token
    assert all(np.isnan(values).all() for values in by_token.values()), "a gene that upstream never saw has a value"


def test_all_hidden_states(case: Case) -> None:
    import torch

    network = case.model.network(case.model.n_layers)
    for which in [
        name.removeprefix("upstream_hidden_") for name in case.expected if name.startswith("upstream_hidden_")
    ]:
        at = case.sequence("upstream_tok", int(case.expected[f"hidden_{which}_row"]))
        cell = torch.from_numpy(case.expected["upstream_tok_tokens"][at].astype(np.int64))
        with torch.inference_mode():
            states = torch.stack(network.hidden_states(cell, [len(cell)]))
        found = states[:, case.expected[f"hidden_{which}_positions"]].numpy()
        np.testing.assert_allclose(found, case.expected[f"upstream_hidden_{which}"], atol=HIDDEN_TOLERANCE, rtol=0)


def test_logits(case: Case) -> None:
    import torch

    from scfm.nn import MaskedLMHead

    tokens = torch.from_numpy(case.expected["logits_tokens"].astype(np.int64))
    network = case.model.network(case.model.n_layers)
    head = MaskedLMHead(case.model.config)
    head.load_published(case.model.tensors)
    with torch.inference_mode():
        logits = head(network(tokens, [len(tokens)]), network.word_embeddings.weight)
    columns = case.expected["logits_columns"]
    np.testing.assert_allclose(
        logits[:, columns].numpy(), case.expected["upstream_logits"], atol=LOGITS_TOLERANCE, rtol=0
    )
    if "upstream_logits_row_logsumexp" in case.expected:  # needs the whole vocabulary
        total = logits.double().logsumexp(dim=1).numpy()
        np.testing.assert_allclose(total, case.expected["upstream_logits_row_logsumexp"], atol=LOGITS_TOLERANCE, rtol=0)


def test_known_tokens_and_medians(reference: Path) -> None:
    from scfm.weights.dictionaries import find_dictionaries, read_vocabulary

    known = {
        "V1": {"ENSG00000155657": (9837, 8.593233838584885), "ENSG00000111640": (3906, 20.045450745942386)},
        "V2": {"ENSG00000155657": (9740, 2.607972424180008), "ENSG00000111640": (3880, 12.981120906304065)},
    }
    for version, genes in known.items():
        folder = reference / "dictionaries" / version
        vocabulary = read_vocabulary(find_dictionaries(None, folder, None))
        for gene, (token, median) in genes.items():
            assert vocabulary.token_of[gene] == token
            assert vocabulary.median_of_token[token] == median


def test_converted_equals_published(case: Case, tmp_path: Path) -> None:
    folder = scfm.model.convert(
        case.folder, tmp_path / "converted", dictionaries=case.root / "dictionaries" / case.version.upper()
    )
    data = case.read("input")[case.expected["kept_cells"][case.embedded[:4]]].copy()
    np.testing.assert_array_equal(scfm.model.load(folder).embed(data), case.model.embed(data))
    assert not list(folder.glob("*.pkl"))
