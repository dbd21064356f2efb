"""Equal to the published scCello code, on values that it wrote for a random checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scfm
from scfm.genes import align
from scfm.model.arguments import Arguments
from scfm.model.families.sccello import ASSAYS, ScCello
from scfm.nn import ScCelloNetwork
from scfm.nn.masking import masked_outputs
from scfm.read import open_counts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Largest absolute differences, from the README of the values.
CELL_TOLERANCE = 2e-5
UNIT_TOLERANCE = 1e-5


@dataclass
class Case:
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "fixtures" / "sccello"

    @property
    def dictionaries(self) -> list[Path]:
        return [self.root / "dictionaries" / "V1", self.root / "sccello_data" / "vocab_id2name.csv"]

    @cached_property
    def expected(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "expected.npz", allow_pickle=False) as file:
            return dict(file)

    @cached_property
    def model(self) -> ScCello:
        model = scfm.model.load(self.folder / "checkpoint", dictionaries=self.dictionaries)
        assert isinstance(model, ScCello)
        return model

    @cached_property
    def adata(self) -> ad.AnnData:
        return ad.read_h5ad(self.folder / "input.h5ad")

    @cached_property
    def network(self) -> ScCelloNetwork:
        network = ScCelloNetwork(self.model.config, gene_head=True)
        network.load_published(self.model.tensors)
        return network.eval()

    @cached_property
    def embedded(self) -> np.ndarray:
        """Rows of the cells that have embeddings."""
        return self.expected.get("embedded", np.arange(self.adata.n_obs))

    def embeddings(self, name: str) -> np.ndarray:
        """Values of these cells, from an array that has all cells of the full values."""
        cells = self.expected.get("cells", np.arange(self.adata.n_obs))
        return self.expected[name][cells[self.embedded]]

    def cells(self) -> list[np.ndarray]:
        return np.split(self.expected["tok_flat"], self.expected["tok_offsets"][1:-1])

    def short(self) -> list[torch.Tensor]:
        parts = np.split(self.expected["mk_ids_flat"], self.expected["mk_ids_offsets"][1:-1])
        return [torch.from_numpy(part.astype(np.int64)) for part in parts]


@pytest.fixture(scope="module")
def case(reference: Path) -> Iterator[Case]:
    with torch.inference_mode():
        yield Case(reference)


def encode(case: Case, data: ad.AnnData, compat: str | None, **options: bool) -> list[np.ndarray]:
    chosen = Arguments(compat=compat, options=options).resolved(case.model)
    with open_counts(data, prefer_raw=compat is not None) as source:
        genes = case.model.match(source.var, None, chosen)
        block = case.model.encoder(source, genes, chosen)(source.read(0, source.n_obs))
    return np.split(block.tokens, block.offsets[1:-1])


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("compat", [None, "upstream"])
def test_tokens(case: Case, compat: str | None) -> None:
    for found, expected in zip(encode(case, case.adata, compat), case.cells(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_tokens_of_the_cells_that_upstream_keeps(case: Case) -> None:
    keep = case.expected["cellxgene_keep"]
    found = encode(case, case.adata, "upstream", cellxgene_filter=True)
    for cell, expected, kept in zip(found, case.cells(), keep, strict=True):
        np.testing.assert_array_equal(cell, expected if kept else [])
    assays = [ASSAYS.index(name) for name in case.adata.obs["assay"][keep]]
    np.testing.assert_array_equal(assays, case.expected["cellxgene_assay_id"])
    dropped = int((~keep).sum())
    assert dropped > 0
    with pytest.warns(
        UserWarning, match=f"{dropped} of {len(keep)} cells? w.* left out by the options cellxgene_filter"
    ):
        run = case.model.run(case.adata, Arguments(options={"cellxgene_filter": True}))
    np.testing.assert_array_equal(np.isnan(run.values).any(axis=1), ~keep)
    assert run.params["n_cells_dropped"] == dropped


def test_values_that_are_ranked(case: Case) -> None:
    """Ours are counts over medians; upstream's differ by a factor of the cell."""
    with open_counts(case.adata) as source:
        tokens = align(source.var, case.model.vocabulary).tokens
    counts = case.adata.X.toarray().astype(np.float64)
    by_token = np.zeros((len(counts), case.model.vocabulary.size))
    by_token[:, tokens[tokens >= 0]] = counts[:, tokens >= 0]
    totals = by_token.sum(axis=1)
    np.testing.assert_array_equal(totals, case.expected["cell_counts"])
    np.testing.assert_array_equal((by_token > 0).sum(axis=1) + 1, case.expected["tok_full_length"])
    ranked = np.split(case.expected["tok_rank_flat"], case.expected["tok_offsets"][1:-1])
    stored = np.split(case.expected["tok_expr_flat"], case.expected["tok_offsets"][1:-1])
    for row, cell in enumerate(case.cells()):
        per_10k = by_token[row, cell[1:]] / totals[row] * 10_000
        np.testing.assert_allclose(
            per_10k / case.model.vocabulary.median_of_token[cell[1:]], ranked[row][1:], rtol=1e-6
        )
        np.testing.assert_allclose(np.log1p(per_10k), stored[row][1:], rtol=1e-6)


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_ties(case: Case, path: str) -> None:
    genes = case.expected["tie_genes"].astype(str)
    adata = ad.AnnData(case.expected["tie_counts"], var=pd.DataFrame(index=genes))
    expected = np.split(case.expected[f"tie_{path}_flat"], case.expected["tie_offsets"][1:-1])
    medians = case.model.vocabulary.median_of_token
    column = {
        case.model.vocabulary.token_of[gene]: i
        for i, gene in enumerate(genes)
        if gene in case.model.vocabulary.token_of
    }
    for row, (found, theirs) in enumerate(zip(encode(case, adata, "upstream"), expected, strict=True)):
        values = [[adata.X[row, column[t]] / medians[t] for t in cell[1:].tolist()] for cell in (found, theirs)]
        np.testing.assert_allclose(*values, rtol=1e-6)
        np.testing.assert_array_equal(np.sort(found), np.sort(theirs))


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_embeddings(case: Case, weights: str, tmp_path: Path) -> None:
    for name in (weights, "config.json"):
        shutil.copyfile(case.folder / "checkpoint" / name, tmp_path / name)
    folder = scfm.model.convert(tmp_path, tmp_path / "converted", dictionaries=case.dictionaries)
    assert not [path for path in folder.iterdir() if path.suffix in (".pkl", ".bin", ".csv")]
    model = scfm.model.load(folder)
    assert {"ctgraph_sim", "cell_type_ancestor_mask"} <= set(model.tensors.keys())
    adata = case.adata[case.embedded].copy()
    cls, cell = model.embed(adata), model.embed(adata, pooling="cell_cls", compat="upstream")
    np.testing.assert_allclose(cls, case.embeddings("cls_stack")[:, -1], atol=CELL_TOLERANCE, rtol=0)
    np.testing.assert_allclose(cell, case.embeddings("cell_cls"), atol=CELL_TOLERANCE, rtol=0)
    np.testing.assert_allclose(unit(cls), case.embeddings("cls_last_norm"), atol=UNIT_TOLERANCE, rtol=0)
    np.testing.assert_allclose(unit(cell), case.embeddings("cell_cls_norm"), atol=UNIT_TOLERANCE, rtol=0)
    scaled = unit(cell) / np.sqrt(model.config.tau)
    np.testing.assert_allclose(scaled, case.embeddings("train_repr"), atol=1e-4, rtol=0)


def test_cls_after_every_layer(case: Case) -> None:
    cells, expected = [case.cells()[row] for row in case.embedded], case.embeddings("cls_stack")
    tokens = torch.from_numpy(np.concatenate(cells).astype(np.int64))
    states = case.network.hidden_states(tokens, [len(cell) for cell in cells])
    first = torch.tensor([0, *np.cumsum([len(cell) for cell in cells])[:-1]])
    stack = torch.stack([state[first] for state in states], dim=1)
    np.testing.assert_allclose(stack.numpy(), expected, atol=CELL_TOLERANCE, rtol=0)
    for k in range(case.model.n_layers + 1):
        values = case.model.embed(case.adata[case.embedded].copy(), hidden_layer=k - case.model.n_layers)
        np.testing.assert_allclose(values, expected[:, k], atol=CELL_TOLERANCE, rtol=0)


@pytest.mark.parametrize("reference", ["full"], indirect=True)  # reads all positions; the losses read some
def test_without_attention_mask(case: Case) -> None:
    """As in upstream's pretraining, where padding is attended to."""
    cells = case.cells()
    padded = torch.zeros(len(cells), max(map(len, cells)), dtype=torch.int64)
    for row, cell in zip(padded, cells, strict=True):
        row[: len(cell)] = torch.from_numpy(cell.astype(np.int64))
    found = case.network(padded.flatten(), [padded.shape[1]] * len(padded), first_only=True)
    np.testing.assert_allclose(found.numpy(), case.expected["cls_last_no_mask"], atol=CELL_TOLERANCE, rtol=0)


@pytest.mark.parametrize("which", [0, 1])
def test_hidden_states_of_genes(case: Case, which: int) -> None:
    tokens = case.short()[which]
    hidden = case.network(tokens, [len(tokens)])
    np.testing.assert_allclose(hidden.numpy(), case.expected[f"seq{which}_last_hidden"], atol=CELL_TOLERANCE, rtol=0)
    assert case.network.gene_head is not None
    head = case.network.gene_head(hidden).numpy()
    np.testing.assert_allclose(head, case.expected[f"seq{which}_gene_head"], atol=CELL_TOLERANCE, rtol=0)


def test_attention(case: Case) -> None:
    tokens, heads = case.short()[0], case.model.config.n_heads
    states = case.network.hidden_states(tokens, [len(tokens)])
    numbers = case.expected.get("attention_layers", np.arange(case.model.n_layers))
    for number, expected in zip(numbers, case.expected["seq0_attentions"], strict=True):
        layer, x = case.network.layers[number], states[number]
        q, k, _ = layer.qkv(x).view(len(x), 3, heads, -1).permute(1, 2, 0, 3)
        attention = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
        np.testing.assert_allclose(attention.numpy(), expected, atol=UNIT_TOLERANCE, rtol=0)


def test_bulk_expression(case: Case) -> None:
    """The path of drug response: a table of logarithms, called by symbols, taken for counts."""
    adata = ad.AnnData(pd.read_csv(case.folder / "drug_expression.csv", index_col=0))
    expected = np.split(case.expected["drug_tok_flat"], case.expected["drug_tok_offsets"][1:-1])
    with pytest.warns(UserWarning, match="log-transformed"):
        found = encode(case, adata, "upstream")
    for cell, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(cell, theirs)
    with pytest.warns(UserWarning, match="log-transformed"):
        cls = case.model.embed(adata, compat="upstream")
    with pytest.warns(UserWarning, match="log-transformed"):
        cell = case.model.embed(adata, compat="upstream", pooling="cell_cls")
    np.testing.assert_allclose(cls, case.expected["drug_cls"], atol=CELL_TOLERANCE, rtol=0)
    np.testing.assert_allclose(unit(cell), case.expected["drug_repr"], atol=UNIT_TOLERANCE, rtol=0)


@pytest.mark.parametrize("double", [False, True])
def test_marker_genes(case: Case, double: bool) -> None:
    network = case.network
    if double:
        network = ScCelloNetwork(case.model.config).double().eval()
        network.load_published(case.model.tensors)
    cells = [(cell, torch.arange(1, len(cell))) for cell in case.short()]
    whole = network(torch.cat(case.short()), [len(cell) for cell in case.short()], first_only=True)
    copies = masked_outputs(network, cells, 1, lambda hidden, _: hidden, first_only=True, max_tokens=500)
    scores = [1 - torch.cosine_similarity(z.double(), masked.double()) for z, masked in zip(whole, copies, strict=True)]
    expected = case.expected["mk_scores64_flat" if double else "mk_scores_flat"]
    np.testing.assert_allclose(torch.cat(scores).numpy(), expected, atol=2e-6, rtol=0)
