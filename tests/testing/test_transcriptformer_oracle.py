"""Random TranscriptFormer checkpoints make every part of the network matter; ``tests/parity`` compares with upstream."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

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
