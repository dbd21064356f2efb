"""Masked genes: loss and gradients of ``transformers``, and candidates that are drawn."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scfm.nn import BertConfig, BertEncoder
from scfm.train.objective import IGNORED, Outputs, TrainingBatch
from scfm.train.objectives import MaskedGenes

from .batches import training_batch

CONFIG = BertConfig(60, 32, 2, 4, 48, 32)
LENGTHS = (20, 13, 7)


def masked_batch() -> TrainingBatch:
    rng = np.random.default_rng(0)
    cells = [rng.integers(2, 60, n) for n in LENGTHS]
    targets = [np.where(rng.random(n) < 0.4, rng.integers(2, 60, n), IGNORED) for n in LENGTHS]
    return training_batch(cells, targets)


def built(tensors: dict[str, torch.Tensor] | None = None, **options: Any) -> tuple[BertEncoder, MaskedGenes]:
    torch.manual_seed(0)
    network, objective = BertEncoder(CONFIG), MaskedGenes(**options)
    if tensors:
        network.load_published(tensors)
    objective.build(SimpleNamespace(tensors=tensors or {}), network)  # type: ignore[arg-type]
    return network, objective


def term_of(network: BertEncoder, objective: MaskedGenes, batch: TrainingBatch) -> Any:
    hidden = network(torch.from_numpy(batch.batch.tokens), batch.batch.lengths)
    return objective(Outputs(network, hidden, hidden), batch)


def test_loss_and_gradients_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        hidden_act="relu",
        pad_token_id=0,
    )
    peer = transformers.BertForMaskedLM(config).double().eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.02)
    network, objective = built(peer.state_dict())
    network, objective = network.double(), objective.double()
    network.load_published(peer.state_dict())
    objective.head.load_published(peer.state_dict())
    batch = masked_batch()
    padded = [
        torch.nn.utils.rnn.pad_sequence(list(torch.from_numpy(part).split(LENGTHS)), True, fill)
        for part, fill in ((batch.batch.tokens, 0), (batch.targets, IGNORED))
    ]
    real = torch.arange(20) < torch.tensor(LENGTHS)[:, None]
    expected = peer(padded[0], attention_mask=real.long(), labels=padded[1])
    term, count = term_of(network, objective, batch), objective.count(batch)
    assert count == (padded[1] != IGNORED).sum() > 5
    loss = term.total / count
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-9)
    right = (expected.logits.argmax(dim=-1) == padded[1]).sum()
    assert term.metrics["accuracy"].item() == right.item()
    loss.backward()
    expected.loss.backward()
    assert peer.cls.predictions.decoder.weight is peer.bert.embeddings.word_embeddings.weight
    layer = peer.bert.encoder.layer[0]
    for ours, theirs in {
        network.word_embeddings: peer.bert.embeddings.word_embeddings,
        network.position_embeddings: peer.bert.embeddings.position_embeddings,
        network.layers[0].up: layer.intermediate.dense,
        network.layers[1].out: peer.bert.encoder.layer[1].attention.output.dense,
        objective.head.dense: peer.cls.predictions.transform.dense,
        objective.head.norm: peer.cls.predictions.transform.LayerNorm,
    }.items():
        for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-7, atol=1e-10, msg=f"{theirs} {name}")
    torch.testing.assert_close(objective.head.bias.grad, peer.cls.predictions.bias.grad, rtol=1e-7, atol=1e-10)
    names = {f"cls.predictions.{part}" for part in ("bias", *_TRANSFORM)}
    published = objective.published_tensors()
    assert set(published) == names
    for name, tensor in published.items():
        torch.testing.assert_close(tensor, peer.state_dict()[name])


_TRANSFORM = [f"transform.{layer}.{kind}" for layer in ("dense", "LayerNorm") for kind in ("weight", "bias")]


def test_sums_of_batches_add_up() -> None:
    """Two halves of a batch give the sum and the gradient of the whole."""
    network, objective = built()
    whole, at = masked_batch(), sum(LENGTHS[:1])
    term_of(network, objective, whole).total.backward()
    expected = network.word_embeddings.weight.grad.clone()
    network.zero_grad()
    parts = [
        TrainingBatch(part, targets)
        for part, targets in zip(whole.batch.split(), (whole.targets[:33], whole.targets[33:]), strict=True)
    ]
    assert at == 20
    assert sum(map(objective.count, parts)) == objective.count(whole)
    for part in parts:
        term_of(network, objective, part).total.backward()
    torch.testing.assert_close(network.word_embeddings.weight.grad, expected)


def test_many_masked_tokens_go_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    network, objective = built()
    batch = masked_batch()
    expected = term_of(network, objective, batch)
    expected.total.backward()
    gradient = objective.head.dense.weight.grad.clone()
    objective.zero_grad()
    monkeypatch.setattr("scfm.nn.losses.ROWS", 4)
    chunked = term_of(network, objective, batch)
    chunked.total.backward()
    torch.testing.assert_close(chunked.total, expected.total)
    torch.testing.assert_close(objective.head.dense.weight.grad, gradient)
    assert torch.equal(chunked.metrics["accuracy"], expected.metrics["accuracy"])


def test_candidates() -> None:
    network, objective = built(candidates=10)
    batch = masked_batch()
    network.word_embeddings.weight.data.normal_(std=0.1)
    _, exact = built()
    exact.load_state_dict(objective.state_dict())
    expected = term_of(network, exact, batch).total
    drawn = torch.stack([term_of(network, objective, batch).total for _ in range(300)])
    assert drawn.std() > 0
    assert drawn.mean().item() == pytest.approx(expected.item(), rel=0.02)
    torch.testing.assert_close(term_of(network, objective.eval(), batch).total, expected)
    network.word_embeddings.weight.data.zero_()
    n, flat = objective.count(batch), term_of(network, objective.train(), batch).total
    assert flat.item() == pytest.approx(n * math.log(60), rel=1e-6)  # few stand for all
    _, all_of_them = built(candidates=60)
    assert term_of(network, all_of_them, batch).total.item() == pytest.approx(n * math.log(60), rel=1e-6)


def test_what_does_not_fit() -> None:
    with pytest.raises(
        TypeError, match="masked_genes is for models that read ranked genes with a BERT; the network is a Linear"
    ):
        MaskedGenes().build(SimpleNamespace(tensors={}), torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="candidates"):
        MaskedGenes(candidates=0)
    assert MaskedGenes(candidates=5).state() == {"name": "MaskedGenes", "candidates": 5}
