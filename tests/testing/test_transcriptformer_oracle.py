"""The slow TranscriptFormer equals upstream's golden values, and random checkpoints make every part of it count."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
from scipy.stats import poisson

from scfm.testing import (
    TranscriptFormerOracle,
    transcriptformer_cell,
    transcriptformer_scores,
    transcriptformer_states,
    transcriptformer_tokens,
    write_transcriptformer,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")

# A softmax over genes cancels what these add to the logits of all genes alike.
WITHOUT_EFFECT = {"mu.mlp.layers.2.bias", "mu.mlp.layers.4.bias"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TranscriptFormerOracle:
    folder = tmp_path_factory.mktemp("tiny")
    return TranscriptFormerOracle.load(write_transcriptformer(folder, attn_bias=True, fw_bias=True))


def some_cell(model: TranscriptFormerOracle, n_genes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.permutation(np.arange(7, len(model.vocabulary)))[:n_genes]
    return tokens, rng.integers(1, 31, n_genes).astype(float)


def outputs(model: TranscriptFormerOracle, n_genes: int = 12, aux: int = 1) -> list[torch.Tensor]:
    cell = some_cell(model, n_genes)
    return [transcriptformer_cell(model, *cell, aux), *transcriptformer_scores(model, *cell, aux)]


def largest_change(model: TranscriptFormerOracle, other: TranscriptFormerOracle) -> float:
    pairs = zip(outputs(model), outputs(other), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def test_files_of_a_random_checkpoint(tmp_path: Path) -> None:
    species = ("homo_sapiens", "mus_musculus")
    folder = write_transcriptformer(tmp_path / "new" / "folder", n_genes=9, species=species)
    model = TranscriptFormerOracle.load(folder)
    names, table = list(model.vocabulary), model.tensors["gene_embeddings.embedding.weight"]
    assert names[:3] == ["unknown", "[PAD]", "[START]"]
    assert sorted(names[7:12]) == [f"ENSG{i:011d}" for i in range(1, 6)] != names[7:12]
    assert sorted(names[12:]) == [f"ENSMUSG{i:011d}" for i in range(1, 5)]
    for name, genes in zip(species, (names[7:12], names[12:]), strict=True):
        with h5py.File(folder / "vocabs" / f"{name}_gene.h5") as file:
            assert file["keys"].dtype.kind == "S"
            assert [key.decode() for key in file["keys"]] == genes
            for gene in genes:
                np.testing.assert_array_equal(file[f"arrays/{gene}"], table[model.vocabulary[gene]])
    assert model.assays == {"unknown": 0, "10x 3' v3": 1, "Smart-seq v4": 2}


def test_a_seed_decides_all(tmp_path: Path) -> None:
    a, b, c = (TranscriptFormerOracle.load(write_transcriptformer(tmp_path / n, seed=int(n == "c"))) for n in "abc")
    assert largest_change(a, b) == 0
    assert largest_change(a, c) > 0.1
    assert list(a.vocabulary) == list(b.vocabulary) != list(c.vocabulary)


def test_every_tensor_matters(tiny: TranscriptFormerOracle) -> None:
    changes = {}
    for name, tensor in tiny.tensors.items():
        other = replace(tiny, tensors={**tiny.tensors, name: torch.zeros_like(tensor)})
        changes[name] = largest_change(tiny, other)
    assert all(np.isfinite(list(changes.values())))
    assert {name for name, change in changes.items() if change < 1e-3} == WITHOUT_EFFECT


@pytest.mark.parametrize(("name", "value"), [("softcap", 0), ("log_counts_eps", 1.0)])
def test_settings_matter(tiny: TranscriptFormerOracle, name: str, value: float) -> None:
    config = {**tiny.config, "model_config": {**tiny.config["model_config"], name: value}}
    assert largest_change(tiny, replace(tiny, config=config)) > 1e-3


def test_exact_likelihood_of_counts_is_zero_truncated_poisson(tiny: TranscriptFormerOracle) -> None:
    exact = {**tiny.config, "loss_config": {**tiny.config["loss_config"], "softplus_approx": False}}
    tokens, counts = some_cell(tiny, 19)
    mu, nll, _ = transcriptformer_scores(replace(tiny, config=exact), tokens, counts, 1)
    expected = torch.log1p(-torch.exp(-mu)) - torch.from_numpy(poisson.logpmf(counts, mu.numpy()))
    computed = (mu > np.log(2)) & (mu < 5)  # bounded below, approximated above
    assert computed.sum() > 3
    torch.testing.assert_close(nll[computed], expected[computed], atol=1e-4, rtol=0)
    assert (nll - transcriptformer_scores(tiny, tokens, counts, 1).count_nll).abs().max() > 1e-3


def test_cells_differ(tiny: TranscriptFormerOracle) -> None:
    tokens, counts = some_cell(tiny, 12)
    embeddings = [
        transcriptformer_cell(tiny, tokens, counts, 1),
        transcriptformer_cell(tiny, tokens, counts, 2),
        transcriptformer_cell(tiny, tokens, counts, 0),
        transcriptformer_cell(tiny, tokens, counts[::-1].copy(), 1),
        transcriptformer_cell(tiny, tokens[::-1].copy(), counts[::-1].copy(), 1),
        transcriptformer_cell(tiny, *some_cell(tiny, 12, seed=1), 1),
        transcriptformer_cell(tiny, tokens[:0], counts[:0], 1),
    ]
    apart = torch.pdist(torch.stack(embeddings))
    assert apart.isfinite().all()
    assert apart.min() > 0.01


def test_unknown_assay_is_not_read(tiny: TranscriptFormerOracle) -> None:
    aux = tiny.tensors["aux_embeddings.assay.weight"]
    other = replace(tiny, tensors={**tiny.tensors, "aux_embeddings.assay.weight": torch.zeros_like(aux)})
    for a, b in zip(outputs(tiny, aux=0), outputs(other, aux=0), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("n_genes", [0, 1, 19, 20])
def test_shapes_of_states(tiny: TranscriptFormerOracle, n_genes: int) -> None:
    cell = some_cell(tiny, n_genes)
    states = transcriptformer_states(tiny, *cell, 1)
    all_read = transcriptformer_states(tiny, *cell, 1, read_all=True)
    assert states.shape == (min(n_genes + 1, 20), 16)
    assert all_read.shape == (n_genes + 1, 16)
    torch.testing.assert_close(all_read[: len(states)], states)
    torch.testing.assert_close(states.sum(0) / 20, transcriptformer_cell(tiny, *cell, 1))


def test_fewer_layers(tiny: TranscriptFormerOracle) -> None:
    cell = some_cell(tiny, 5)
    none, one, two, every = (transcriptformer_states(tiny, *cell, 1, n_layers=n) for n in (0, 1, 2, None))
    torch.testing.assert_close(two, every)
    assert (none - one).abs().max() > 0.1
    assert (one - two).abs().max() > 0.1


def test_the_last_position_is_forced_in_full_cells_only(tiny: TranscriptFormerOracle) -> None:
    for n_genes, forced in ((19, False), (20, True)):
        cell = some_cell(tiny, n_genes)
        as_upstream, plain = (transcriptformer_scores(tiny, *cell, 1, forced_last=flag) for flag in (True, False))
        torch.testing.assert_close(as_upstream.mu, plain.mu)
        torch.testing.assert_close(as_upstream.gene_nll[:-1], plain.gene_nll[:-1])
        assert (as_upstream.gene_nll[-1] != plain.gene_nll[-1]) == forced
        assert (as_upstream.count_nll[-1] != plain.count_nll[-1]) == forced


@pytest.mark.parametrize(
    ("settings", "expected_tokens", "expected_counts"),
    [
        ({"seq_len": 9}, [8, 7, 12, 10], [40, 2, -1, 2]),
        ({"seq_len": 2}, [8, 7], [40, 2]),
        ({"seq_len": 9, "sort": True}, [8, 7, 10, 12], [40, 2, 2, -1]),
        ({"seq_len": 5, "sort": True}, [8, 7, 10], [40, 2, 2]),  # two zeros take up room
    ],
)
def test_order_of_tokens(settings: dict[str, Any], expected_tokens: list[int], expected_counts: list[float]) -> None:
    row, column_tokens = [40, 0, 99, 2, -1, 0, 2], [8, 9, -1, 7, 12, 11, 10]
    tokens, counts = transcriptformer_tokens(row, column_tokens, **settings)
    assert tokens.tolist() == expected_tokens
    assert counts.tolist() == [min(max(count, 0), 30) for count in expected_counts]


def test_counts_are_clipped_after_scaling() -> None:
    row = [30, 10, 0, 60]
    _, counts = transcriptformer_tokens(row, [7, 8, 9, 10], seq_len=2, normalize_to_scale=20, clip_counts=12)
    assert counts.tolist() == [12, 5]
