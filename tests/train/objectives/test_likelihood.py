"""The likelihood of genes and counts against its formula, written out for each gene."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import scfm
from scfm.testing import write_transcriptformer
from scfm.train.objective import Outputs, Term, TrainingBatch
from scfm.train.objectives import Likelihood

from .batches import training_batch

if TYPE_CHECKING:
    from pathlib import Path

    from scfm.model import FoundationModel

N_GENES = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FoundationModel:
    folder: Path = tmp_path_factory.mktemp("transcriptformer")
    return scfm.model.load(write_transcriptformer(folder, n_genes=N_GENES, seq_len=20), family="transcriptformer")


def batch_of(model: FoundationModel) -> TrainingBatch:
    """A cell with an assay, one without, and one without genes."""
    rng = np.random.default_rng(0)
    start, assay = model.vocabulary.special_tokens["[START]"], model.config.vocab_size + 1
    genes = [rng.permutation(model.vocabulary.tokens)[:n] for n in (12, 7, 0)]
    counts = [rng.integers(1, 30, len(part)) for part in genes]
    cells = [[assay, start, *genes[0]], [start, *genes[1]], [start]]
    return training_batch(cells, values=[[1, 1, *counts[0]], [1, *counts[1]], [1]])


def run(
    model: FoundationModel, objective: Likelihood, batch: TrainingBatch
) -> tuple[torch.nn.Module, torch.Tensor, Term]:
    network = model.network(model.n_layers)
    objective.build(model, network)
    hidden = network(torch.from_numpy(batch.batch.tokens), torch.from_numpy(batch.batch.values), batch.batch.lengths)
    return network, hidden, objective(Outputs(network, hidden, hidden), batch)


def expected(
    model: FoundationModel, network: torch.nn.Module, hidden: torch.Tensor, batch: TrainingBatch
) -> list[float]:
    """Negative log-likelihoods of counts and genes, as the published code computes them."""
    weight = {name: tensor.double() for name, tensor in model.tensors.items()}

    def mlp(name: str, x: torch.Tensor) -> torch.Tensor:
        up, norm, down = ((weight[f"{name}.layers.{i}.weight"], weight[f"{name}.layers.{i}.bias"]) for i in (0, 2, 4))
        x = torch.relu(x @ up[0].T + up[1])
        x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5) * norm[0] + norm[1]
        return x @ down[0].T + down[1]

    eps, cap, sums = model.config.log_counts_eps, model.config.softcap, [0.0, 0.0]
    hidden, stop = hidden.detach().double(), 0
    for length in batch.batch.lengths.tolist():
        start, stop = stop, stop + length
        tokens, counts = batch.batch.tokens[start:stop], batch.batch.values[start:stop].astype(float)
        first = int(np.flatnonzero(tokens == model.vocabulary.special_tokens["[START]"])[0]) + 1
        genes, counts, before = tokens[first:], counts[first:], hidden[start + first - 1 : stop - 1]
        own = network.gene_states(torch.from_numpy(genes)).detach().double()
        logits = [
            weight["mu.gene_embedding.weight"][gene, 0] + mlp("mu.mlp", torch.cat([o, g]))[0]
            for gene, o, g in zip(genes.tolist(), before, own, strict=True)
        ]
        share = torch.softmax(torch.stack(logits), dim=0).tolist() if logits else []
        for gene, o, c, m in zip(genes.tolist(), before, counts.tolist(), share, strict=True):
            x = m * counts.sum() + eps
            sums[0] -= c * math.log(x) - max(0.0, x - math.log1p(math.exp(-x))) - math.lgamma(c + 1)
            capped = cap * torch.tanh(mlp("gene_id_head", o) / cap)
            sums[1] -= (capped[gene] - torch.logsumexp(capped, dim=0)).item()
    return sums


def test_formula(model: FoundationModel) -> None:
    objective, batch = Likelihood(gene_weight=0.5), batch_of(model)
    network, hidden, term = run(model, objective, batch)
    assert objective.count(batch) == 19
    count, gene = expected(model, network, hidden, batch)
    assert term.metrics["count"].item() == pytest.approx(count, rel=1e-5)
    assert term.metrics["gene"].item() == pytest.approx(gene, rel=1e-5)
    assert term.total.item() == pytest.approx(count + 0.5 * gene, rel=1e-5)


def test_gradients_reach_all_weights(model: FoundationModel) -> None:
    """And those of the state before a gene are the differences of the formula."""
    objective, batch = Likelihood(), batch_of(model)
    network, hidden, _ = run(model, objective, batch)
    states = hidden.detach().requires_grad_()
    term = objective(Outputs(network, states, states), batch)
    term.total.backward()
    step = torch.zeros_like(states)
    step[5, 3] = 1e-2
    high, low = (sum(expected(model, network, states.detach() + sign * step, batch)) for sign in (1, -1))
    assert states.grad[5, 3].item() == pytest.approx((high - low) / 2e-2, rel=1e-3, abs=1e-4)
    network.zero_grad()
    objective(Outputs(network, hidden, hidden), batch).total.backward()
    for module in (network, objective):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_heads_have_their_published_names(model: FoundationModel) -> None:
    objective = Likelihood()
    objective.build(model, model.network(1))
    published = objective.published_tensors()
    assert {name for name in model.tensors if name.startswith(("mu.", "gene_id_head."))} == set(published)
    for name, tensor in published.items():
        torch.testing.assert_close(tensor, model.tensors[name])
    assert Likelihood(0.5).state() == {"name": "Likelihood", "gene_weight": 0.5}


def test_what_does_not_fit(model: FoundationModel) -> None:
    with pytest.raises(TypeError, match="trains models of the family 'transcriptformer'; the network is a Linear"):
        Likelihood().build(model, torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="gene_weight must not be negative"):
        Likelihood(-1.0)
    network = model.network(1)
    network.gene_vectors = torch.zeros_like(network.gene_vectors[:])
    with pytest.raises(
        ValueError, match="have no protein vectors, which TranscriptFormer reads: pass their file as gene_vectors"
    ):
        Likelihood().build(model, network)
    objective, batch = Likelihood(), batch_of(model)
    objective.build(model, model.network(1))
    without = training_batch([batch.batch.tokens])
    with pytest.raises(ValueError, match="needs the counts of the tokens"):
        objective(Outputs(torch.nn.Identity(), torch.zeros(1), torch.zeros(1)), without)
