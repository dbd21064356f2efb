"""Dropout: where it is, and that it is there in training only."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scfm.nn import (
    BertConfig,
    BertEncoder,
    OntologyAlignmentLoss,
    Packing,
    ScCelloNetwork,
    TranscriptFormer,
    TranscriptFormerConfig,
    TranscriptFormerHeads,
    cell_representation,
)
from scfm.nn.attention import attend

if TYPE_CHECKING:
    from collections.abc import Callable

    Passes = dict[str, Callable[[], Tensor]]

P = 0.25
LENGTHS = [20, 20, 12, 1]
BERT = BertConfig(60, 16, 2, 2, 32, 24)
TRANSCRIPTFORMER = TranscriptFormerConfig(50, 3, 12, 16, 2, 2, 24, 20, 10)


def bert(dropout: float, path: Any = "auto") -> tuple[nn.Module, Passes]:
    torch.manual_seed(0)
    network = BertEncoder(replace(BERT, dropout=dropout), attention=path)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(0, 60, (sum(LENGTHS),))
    return network, {
        "all": lambda: network(tokens, LENGTHS),
        "first": lambda: network(tokens, LENGTHS, first_only=True),
    }


def transcriptformer(dropout: float) -> tuple[nn.Module, Passes]:
    torch.manual_seed(0)
    config = replace(TRANSCRIPTFORMER, dropout=dropout)
    network, heads = TranscriptFormer(config), TranscriptFormerHeads(config)
    network.gene_vectors = torch.randn(50, 12)
    genes, states = torch.randint(0, 50, (sum(LENGTHS),)), torch.randn(sum(LENGTHS), 16)
    counts = torch.randint(1, 9, (sum(LENGTHS),)).float()
    return nn.ModuleList([network, heads]), {
        "states": lambda: network(genes, counts, LENGTHS),
        "genes": lambda: network.gene_states(genes),
        "count head": lambda: heads.expected_counts(states, genes, states, counts, LENGTHS),
        "gene head": lambda: heads.gene_log_likelihood(states, genes),
    }


NETWORKS: dict[str, Callable[[float], tuple[nn.Module, Passes]]] = {
    "cells": lambda dropout: bert(dropout, "cells"),
    "padded": lambda dropout: bert(dropout, "padded"),
    "transcriptformer": transcriptformer,
}


def dropped(before: Tensor, after: Tensor) -> bool:
    """Whether some values became 0 and all others grew by 1 / (1 − p)."""
    zero = after.abs() < 1e-6
    return 0.05 < zero.float().mean() < 0.6 and torch.allclose(after[~zero], before[~zero] / (1 - P), atol=1e-5)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_in_training_only(name: str, grad: bool) -> None:
    (network, passes), (without, plain) = NETWORKS[name](P), NETWORKS[name](0.0)
    with torch.set_grad_enabled(grad):
        for key, run in passes.items():
            network.eval()
            assert torch.equal(run(), plain[key]()), key
            network.train()
            assert not torch.equal(run(), run()), key
            without.train()
            assert torch.equal(plain[key](), plain[key]()), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", ["cells", "padded"])
def test_attention_weights_are_dropped(path: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(64, 3 * 16, dtype=dtype)  # cells of one token: the only weight is 1
    out = attend(qkv, Packing([1] * 64, qkv.device, path), 4, P)
    v = qkv[:, 32:].float().unflatten(1, (4, -1))
    kept = out.float().unflatten(1, (4, -1)).abs().amax(dim=2) > 0
    assert 0.6 < kept.float().mean() < 0.9
    torch.testing.assert_close(out.float().unflatten(1, (4, -1))[kept], v[kept] / (1 - P), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("grad", [True, False])
def test_places_of_a_bert(grad: bool) -> None:
    network, passes = bert(P)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _, args, output, name=name: seen.update({name: (args[0], output)}))
    with torch.set_grad_enabled(grad):
        passes["all"]()
    assert dropped(seen["norm"][1], seen["layers.0"][0])
    for layer in ("layers.0", "layers.1"):
        assert dropped(seen[f"{layer}.out"][1], seen[f"{layer}.norm1"][0] - seen[layer][0])
        assert dropped(seen[f"{layer}.down"][1], seen[f"{layer}.norm2"][0] - seen[f"{layer}.norm1"][1])


@pytest.mark.parametrize("grad", [True, False])
def test_places_of_a_transcriptformer(grad: bool) -> None:
    network, passes = transcriptformer(P)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _, args, output, name=name: seen.update({name: (args[0], output)}))
    with torch.set_grad_enabled(grad):
        for run in passes.values():
            run()
    for mlp in ("0.gene_mlp", "1.count_mlp", "1.gene_mlp"):
        assert dropped(seen[f"{mlp}.norm"][1], seen[f"{mlp}.down"][0])
    for layer in ("0.layers.0", "0.layers.1"):
        assert dropped(F.gelu(seen[f"{layer}.up"][1]), seen[f"{layer}.down"][0])


def test_input_states_of_genes_are_not_kept_in_training() -> None:
    network, passes = transcriptformer(P)
    with torch.no_grad():
        network.eval()
        expected = passes["genes"]()
        for module in network.modules():  # as in Monte Carlo dropout, where the rest stays in evaluation mode
            module.train(isinstance(module, nn.Dropout))
        assert not torch.equal(passes["genes"](), passes["genes"]())
        network.eval()
        assert torch.equal(passes["genes"](), expected)


def test_a_second_pass_is_another_one() -> None:
    """The positive pair of the inter loss: the same cells with other dropout."""
    torch.manual_seed(0)
    network = ScCelloNetwork(replace(BERT, dropout=P)).train()
    tokens = torch.randint(0, 60, (sum(LENGTHS),))

    def z() -> Tensor:
        return cell_representation(network.cell_head(network(tokens, LENGTHS, first_only=True)), tau=0.05)

    loss = OntologyAlignmentLoss(torch.tensor([[9, 1], [1, 9]]), torch.eye(2, dtype=torch.int))
    types = torch.tensor([0, 0, 1, 1])
    pair = z(), z()
    assert (pair[0] - pair[1]).abs().max() > 1e-3
    loss(*pair, types).backward()
    with_other_dropout = [parameter.grad.clone() for parameter in network.cell_head.parameters()]
    network.zero_grad()
    loss(pair[0].detach(), z(), types).backward()  # the second pass learns, too
    assert all(gradient.abs().max() > 0 for gradient in with_other_dropout)
    assert all(parameter.grad.abs().max() > 0 for parameter in network.cell_head.parameters())
    network.eval()
    assert torch.equal(z(), z())


@pytest.mark.parametrize("config", [BERT, TRANSCRIPTFORMER])
def test_configs(config: BertConfig | TranscriptFormerConfig) -> None:
    assert config.dropout == 0
    assert "dropout" not in replace(config, dropout=P).architecture()
    assert type(config)(**config.architecture()) == config
    for value in (1.0, -0.1, float("nan"), "0.1", True, None):
        with pytest.raises(ValueError, match="dropout must be a number from 0 to below 1, got"):
            replace(config, dropout=value)


def test_a_published_config_does_not_say() -> None:
    upstream = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    upstream |= {"intermediate_size": 4, "max_position_embeddings": 8, "hidden_dropout_prob": 0.1}
    assert BertConfig.from_dict(upstream).dropout == 0
