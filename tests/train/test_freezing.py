"""Which parts of a network are frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

from scfm.train.freezing import freeze

from ..families import TINY

if TYPE_CHECKING:
    from pathlib import Path

INPUT = {
    "scCello": {"word_embeddings", "position_embeddings", "token_type_embeddings", "norm"},
    "TranscriptFormer": {"gene_mlp", "assays"},
}


@pytest.mark.parametrize("name", INPUT)
@pytest.mark.parametrize("n_layers", [0, 1, 2, True])
def test_the_input_and_the_first_layers_are_frozen(name: str, n_layers: Any, tmp_path: Path) -> None:
    model = TINY[name].load(tmp_path / "model")
    network = model.training_network()
    freeze(network, n_layers)
    trained = {name.partition(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    every = {name.partition(".")[0] for name, _ in network.named_parameters()}
    if n_layers is True:
        assert not trained
        return
    rest = every - INPUT[name] - ({"layers"} if n_layers == model.n_layers else set())
    assert trained == rest
    layers: Any = network.layers
    for number, layer in enumerate(layers):
        assert all(p.requires_grad == (number >= n_layers) for p in layer.parameters())


@pytest.mark.parametrize("n_layers", [-1, 3, 1.0, False])
def test_numbers_that_are_out_of_range(n_layers: Any, tmp_path: Path) -> None:
    network = TINY["Geneformer V1"].load(tmp_path / "model").training_network()
    with pytest.raises(ValueError, match="layers cannot be frozen: the network has 2"):
        freeze(network, n_layers)
    assert all(p.requires_grad for p in network.parameters())


def test_a_network_that_does_not_say_what_its_input_is() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="can only be frozen as a whole"):
        freeze(network, 1)
    freeze(network, True)
    assert not any(p.requires_grad for p in network.parameters())
