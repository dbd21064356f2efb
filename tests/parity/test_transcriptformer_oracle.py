"""The slow TranscriptFormer equals upstream's values, and a random checkpoint has the schema of the published ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pytest
import torch

from scfm.testing import (
    TranscriptFormerOracle,
    esm2ce_cell,
    transcriptformer_cell,
    transcriptformer_scores,
    transcriptformer_states,
    transcriptformer_tokens,
    write_transcriptformer,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Cells = list[tuple[NDArray[np.int64], NDArray[np.float64]]]

# Largest absolute (relative for mu and norm_llh) differences, from the README of the values.
CELL_TOLERANCE = 1e-5
GENE_TOLERANCE = 2e-5
SCORE_TOLERANCE = 5e-5
RELATIVE_TOLERANCE = 1e-5
ESM2CE_TOLERANCE = 1e-6

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Golden:
    folder: Path

    @cached_property
    def model(self) -> TranscriptFormerOracle:
        return TranscriptFormerOracle.load(self.folder / "checkpoint")

    @cached_property
    def specials(self) -> list[str]:
        return list(self.model.config["data_config"]["special_tokens"])

    @cached_property
    def expected(self) -> dict[str, np.ndarray]:
        return self.read("expected")

    def read(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
            return dict(file)

    def cells(self, name: str, vocabulary: Mapping[str, int] | None = None, **settings: Any) -> Cells:
        data = ad.read_h5ad(self.folder / f"{name}.h5ad")
        genes = {gene: token for gene, token in (vocabulary or self.model.vocabulary).items() if gene[0] == "E"}
        tokens = [genes.get(gene.partition(".")[0], -1) for gene in data.var["ensembl_id"]]
        rows = data.X.toarray()
        return [transcriptformer_tokens(row, tokens, seq_len=self.model.seq_len, **settings) for row in rows]

    def aux(self, name: str) -> list[int]:
        return [self.model.assays.get(assay, 0) for assay in ad.read_h5ad(self.folder / f"{name}.h5ad").obs["assay"]]

    def embed(self, cells: Cells, aux: list[int], **settings: Any) -> NDArray[np.float64]:
        pairs = zip(cells, aux, strict=True)
        return np.array([transcriptformer_cell(self.model, *cell, i, **settings).numpy() for cell, i in pairs])


@pytest.fixture(scope="module")
def golden(reference: Path) -> Golden:
    return Golden(reference / "fixtures" / "transcriptformer")


@pytest.fixture(scope="module")
def cells(golden: Golden) -> Cells:
    return golden.cells("input")


def unpadded(tokens: np.ndarray, counts: np.ndarray, pad: int = 1) -> Cells:
    return [(row[row != pad], of_row[row != pad]) for row, of_row in zip(tokens, counts, strict=True)]


def assert_close(actual: Any, expected: np.ndarray, atol: float = 0.0, rtol: float = 0.0) -> None:
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=rtol)


def assert_same_cells(actual: Cells, expected: Cells, rtol: float = 0.0) -> None:
    for (tokens, counts), (expected_tokens, expected_counts) in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(tokens, expected_tokens)
        assert_close(counts, expected_counts, rtol=rtol)


def padded(rows: Iterable[torch.Tensor], width: int) -> np.ndarray:
    return np.array([np.pad(row.numpy(), (0, width - len(row))) for row in rows])


def test_vocabulary_and_assays(golden: Golden) -> None:
    assert list(golden.model.vocabulary) == [name.decode() for name in golden.expected["vocab"]]
    assert golden.aux("input") == golden.expected["aux_tokens"][:, 0].tolist()


def test_tokens_and_counts(golden: Golden, cells: Cells) -> None:
    assert_same_cells(cells, unpadded(golden.expected["tokens"], golden.expected["counts"]))


def test_cell_embeddings(golden: Golden, cells: Cells) -> None:
    assert_close(golden.embed(cells, golden.aux("input")), golden.expected["embeddings"], CELL_TOLERANCE)


def test_contextual_gene_embeddings(golden: Golden, cells: Cells) -> None:
    rows, aux = np.unique(golden.expected["cge_cell_indices"]).tolist(), golden.aux("input")
    states = [transcriptformer_states(golden.model, *cells[i], aux[i])[: len(cells[i][0])].numpy() for i in rows]
    indices = np.repeat(rows, [len(cells[i][0]) for i in rows])
    tokens = np.concatenate([cells[i][0] for i in rows])
    np.testing.assert_array_equal(indices, golden.expected["cge_cell_indices"])
    np.testing.assert_array_equal(golden.expected["vocab"][tokens], golden.expected["cge_gene_names"])
    assert_close(np.concatenate(states), golden.expected["cge_embeddings"], GENE_TOLERANCE)


def test_scores(golden: Golden, cells: Cells) -> None:
    pairs = zip(cells, golden.aux("input"), strict=True)
    mu, counts, genes = zip(*(transcriptformer_scores(golden.model, *cell, aux) for cell, aux in pairs), strict=True)
    expected, filled = golden.expected, [len(tokens) > 0 for tokens, _ in cells]
    width = golden.model.seq_len
    assert_close([row.mean() for row in counts], expected["llh"], GENE_TOLERANCE)  # NaN without genes
    assert_close(padded(genes, width), expected["gene_llh"], SCORE_TOLERANCE)
    assert_close(padded(mu, width)[filled], expected["mu"][filled], rtol=RELATIVE_TOLERANCE)


def test_esm2ce(golden: Golden, cells: Cells) -> None:
    actual = np.array([esm2ce_cell(golden.model, tokens).numpy() for tokens, _ in cells])
    assert_close(actual, golden.expected["esm2ce_embeddings"], ESM2CE_TOLERANCE)


def test_normalised_counts(golden: Golden) -> None:
    cells = golden.cells("input", normalize_to_scale=10_000, clip_counts=100)
    expected, aux = golden.expected, golden.aux("input")
    assert_same_cells(cells, unpadded(expected["tokens"], expected["norm_counts"]), rtol=1e-6)
    assert_close(golden.embed(cells, aux), expected["norm_embeddings"], CELL_TOLERANCE)
    llh = [
        transcriptformer_scores(golden.model, *cell, i, clip_counts=100).count_nll.mean()
        for cell, i in zip(cells, aux, strict=True)
    ]
    assert_close(llh, expected["norm_llh"], rtol=RELATIVE_TOLERANCE)


def test_sorted_genes(golden: Golden) -> None:
    cells, expected = golden.cells("input_sort", sort=True), golden.expected
    assert_same_cells(cells, unpadded(expected["sort_tokens"], expected["sort_counts"]))
    assert_close(golden.embed(cells, golden.aux("input_sort")), expected["sort_embeddings"], CELL_TOLERANCE)


def test_given_tokens(golden: Golden) -> None:
    cells = unpadded(golden.expected["sortties_tokens"], golden.expected["sortties_counts"])
    assert_close(golden.embed(cells, golden.aux("input")), golden.expected["sortties_embeddings"], CELL_TOLERANCE)


def other_genes(golden: Golden, specials: list[str]) -> tuple[dict[str, int], np.ndarray]:
    """Vocabulary and vectors of the other species after special tokens in the given order."""
    with h5py.File(golden.folder / "ood_embedding.h5") as file:
        keys = [key.decode() for key in file["keys"]]
        rows = [file[f"arrays/{key}"][()] for key in keys]
    table = golden.model.vectors(None)[[golden.model.vocabulary[name] for name in specials]].numpy()
    return {name: token for token, name in enumerate([*specials, *keys])}, np.concatenate([table, rows])


def test_other_gene_vectors(golden: Golden) -> None:
    expected, aux = golden.read("expected_ood_corrected"), golden.aux("input_ood")
    vocabulary, vectors = other_genes(golden, golden.specials)
    assert list(vocabulary) == [name.decode() for name in expected["vocab"]]
    cells = golden.cells("input_ood", vocabulary)
    assert_same_cells(cells, unpadded(expected["tokens"], expected["counts"]))
    assert_close(golden.embed(cells, aux, gene_vectors=vectors), expected["embeddings"], CELL_TOLERANCE)
    pooled = [esm2ce_cell(golden.model, tokens, gene_vectors=vectors) for tokens, _ in cells]
    assert_close(np.array(pooled), expected["esm2ce_embeddings"], ESM2CE_TOLERANCE)
    states = [
        transcriptformer_states(golden.model, *cell, i, gene_vectors=vectors)[: len(cell[0])].numpy()
        for cell, i in ((cells[row], aux[row]) for row in np.unique(expected["cge_cell_indices"]))
    ]
    assert_close(np.concatenate(states), expected["cge_embeddings"], GENE_TOLERANCE)


def test_other_gene_vectors_with_the_defect_of_upstream(golden: Golden) -> None:
    expected, aux = golden.read("expected_ood_upstream"), golden.aux("input_ood")
    vocabulary, vectors = other_genes(golden, ["unknown", "[START]", "[END]", "[RD]", "[CELL]", "[PAD]", "[MASK]"])
    assert list(vocabulary) == [name.decode() for name in expected["vocab"]]
    cells = list(zip(expected["tokens"], expected["counts"], strict=True))  # padding is read like genes
    assert_close(golden.embed(cells, aux, gene_vectors=vectors), expected["embeddings"], CELL_TOLERANCE)
    for i, cell in enumerate(cells):
        mu, counts, genes = transcriptformer_scores(golden.model, *cell, aux[i], gene_vectors=vectors)
        assert_close(mu, expected["mu"][i], atol=1e-6, rtol=RELATIVE_TOLERANCE)
        assert_close(counts.mean(), expected["llh"][i], GENE_TOLERANCE)
        assert_close(genes, expected["gene_llh"][i], SCORE_TOLERANCE)


def test_a_random_checkpoint_has_the_published_schema(golden: Golden, tmp_path: Path) -> None:
    checkpoint = golden.folder / "checkpoint"
    sizes = golden.model.config["model_config"]
    names = ("num_layers", "num_heads", "embed_dim", "model_dim", "seq_len", "gene_head_hidden_dim")
    short = {"num_layers": "n_layers", "num_heads": "n_heads", "gene_head_hidden_dim": "gene_head_dim"}
    settings = {short.get(name, name): sizes[name] for name in names}
    assays = list(golden.model.assays)[1:]
    folder = write_transcriptformer(tmp_path, n_genes=700, gene_width=64, assays=assays, **settings)
    config, published = (json.loads((path / "config.json").read_text()) for path in (folder, checkpoint))
    assert config == published
    ours, theirs = (torch.load(path / "model_weights.pt", weights_only=True) for path in (folder, checkpoint))
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}
