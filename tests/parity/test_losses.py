"""Equal to scCello's own pretraining: losses, accuracies and gradients of a small random checkpoint.

Upstream pads a batch and gives its encoder no attention mask, so that pads are tokens like others: here the cells are
handed over as cells of the padded length.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scfm._types import TokenBatch
from scfm.nn import (
    BertConfig,
    CellTypeCoherenceLoss,
    MaskedGeneLoss,
    OntologyAlignmentLoss,
    RegularisationLoss,
    ScCelloNetwork,
    cell_representation,
)
from scfm.train.objective import Outputs, TrainingBatch
from scfm.train.objectives import ScCello

if TYPE_CHECKING:
    from pathlib import Path

N_TYPES = 398
LOSSES = ("L_MGP", "L_Inter", "L_Intra", "L_Reg", "acc_MGP", "acc_Intra")
LEGACY = ("tf_class", "tf_superclass")
LAYER = {
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
}
HEAD = {"dense_1": "up", "layer_norm": "norm", "dense_2": "down"}


class Pretraining(torch.nn.Module):
    """The network and all that the losses learn, with the weights of the checkpoint."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        tensors = load_file(folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        d, self.tau = config["hidden_size"], config["tau"]
        self.network = ScCelloNetwork(BertConfig.from_dict(config | {"type_vocab_size": 1}), gene_head=True)
        self.network.load_published(tensors)
        self.masked = MaskedGeneLoss(self.tau)
        self.coherence = CellTypeCoherenceLoss(N_TYPES, d, self.tau)
        self.regularisation = RegularisationLoss(d)
        self.alignment = OntologyAlignmentLoss(tensors["ctgraph_sim"], tensors["cell_type_ancestor_mask"])
        with torch.no_grad():
            self.coherence.prototypes.weight.copy_(tensors["learned_centroid.weight"][:N_TYPES])
            self.regularisation.affine.weight.copy_(tensors["affine_projection.weight"])
            self.regularisation.affine.bias.copy_(tensors["affine_projection.bias"])

    def hidden(self, ids: torch.Tensor, *, masked: bool) -> torch.Tensor:
        """Last hidden states in the shape of the padded batch."""
        real = ids != 0 if masked else torch.ones_like(ids, dtype=torch.bool)
        states = self.network(ids[real], real.sum(dim=1))
        return states.new_zeros(*ids.shape, states.shape[1]).masked_scatter(real[..., None], states)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor, types: torch.Tensor, *, masked: bool) -> Step:
        hidden = self.hidden(ids, masked=masked)
        z, z_prime = (
            cell_representation(self.network.cell_head(states[:, 0]), self.tau)
            for states in (hidden, self.hidden(ids, masked=masked))
        )
        assert self.network.gene_head is not None
        genes = self.masked(hidden, labels, self.network.word_embeddings.weight, self.network.gene_head)
        intra = self.coherence(z, types)
        regularisation = self.regularisation(z, self.coherence.representations(types))
        inter = self.alignment(z, z_prime, types)
        values = (genes.loss, inter, intra.loss, regularisation, genes.accuracy, intra.accuracy)
        return Step(z, dict(zip(LOSSES, values, strict=True)))


@dataclass
class Step:
    z: torch.Tensor
    values: dict[str, torch.Tensor]

    @property
    def total(self) -> torch.Tensor:
        return sum(self.values[name] for name in LOSSES[:4])


@pytest.fixture(scope="module")
def folder(reference: Path) -> Path:
    return reference / "fixtures" / "sccello"


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "expected.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name.startswith(("loss", "grad", "inter"))}


@pytest.fixture(scope="module")
def training(folder: Path) -> Pretraining:
    return Pretraining(folder / "checkpoint")


def batch(expected: dict[str, np.ndarray]) -> list[torch.Tensor]:
    return [
        torch.from_numpy(expected[f"loss_{name}"].astype(np.int64)) for name in ("input_ids", "labels", "cell_type")
    ]


def test_alignment_alone(training: Pretraining, expected: dict[str, np.ndarray]) -> None:
    z, z_prime = (torch.from_numpy(expected[name]) for name in ("inter_z", "inter_z_prime"))
    types = torch.from_numpy(expected["inter_cell_type"].astype(np.int64))
    assert training.alignment(z, z_prime, types).item() == pytest.approx(float(expected["inter_loss"]), rel=2e-5)
    one_type = training.alignment(z, z_prime, types[:1].expand(len(types)))
    assert one_type.item() == float(expected["inter_loss_one_type"]) == 0


# upstream takes the root of the temperature in float32, also for the float64 values: 3e-8 of each loss
@pytest.mark.parametrize(
    ("prefix", "dtype", "tolerance"),
    [("loss", torch.float32, 2e-5), ("lossmask", torch.float32, 2e-5), ("loss64", torch.float64, 1e-7)],
)
def test_losses(
    folder: Path, expected: dict[str, np.ndarray], prefix: str, dtype: torch.dtype, tolerance: float
) -> None:
    training = Pretraining(folder / "checkpoint").to(dtype)
    with torch.no_grad():
        step = training(*batch(expected), masked=prefix == "lossmask")
    for name, value in step.values.items():
        assert value.dtype == (dtype if name.startswith("L_") else torch.float32)
        assert value.item() == pytest.approx(float(expected[f"{prefix}_{name}"]), rel=tolerance), name
    if prefix != "lossmask":
        assert step.total.item() == pytest.approx(float(expected[f"{prefix}_total"]), rel=tolerance)
    if prefix == "loss":
        np.testing.assert_allclose(step.z.numpy(), expected["loss_z"], atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def gradients(training: Pretraining, expected: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Gradient of the sum of the losses for each weight, by the name that upstream gives it."""
    ids, labels, types = batch(expected)
    training(ids, labels, types, masked=False).total.backward()
    ours = {name: weight.grad for name, weight in training.named_parameters() if weight.grad is not None}
    return {name: gradient_of(name, ours, ids) for name in expected["grad_names"].astype(str).tolist()}


def gradient_of(name: str, ours: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Look up a gradient by the name upstream, or make it where upstream scales it or its tables are one here."""
    place, _, kind = name.rpartition(".")
    if name.startswith("bert.embeddings."):
        table = place.removeprefix("bert.embeddings.").removesuffix("_embeddings")
        row = ours["network.token_type_embeddings.weight"]
        if table in LEGACY:
            return row / ids.numel()  # scaled by frequency in each of the two passes
        if table == "expbin":
            return torch.zeros_like(row)  # its only row is its padding
        return ours[f"network.norm.{kind}" if table == "LayerNorm" else f"network.{table}_embeddings.{kind}"]
    if name.startswith("bert.encoder.layer."):
        number, _, part = place.removeprefix("bert.encoder.layer.").partition(".")
        if part in LAYER:
            return ours[f"network.layers.{number}.{LAYER[part]}.{kind}"]
        which = ("query", "key", "value").index(part.rpartition(".")[2])
        return ours[f"network.layers.{number}.qkv.{kind}"].chunk(3)[which]
    if ".predictions." in name:
        head, _, part = name.partition(".predictions.")
        part = "dense_2.bias" if part == "bias" else part
        layer, _, kind = part.partition(".")
        return ours[f"network.{'gene' if head == 'cls' else 'cell'}_head.{HEAD[layer]}.{kind}"]
    learned = {"learned_centroid": "coherence.prototypes", "affine_projection": "regularisation.affine"}
    return ours[f"{learned[place]}.{kind}"]


def word_gradient(training: Pretraining, gradient: torch.Tensor, expected: dict[str, np.ndarray]) -> torch.Tensor:
    """Gradient of the word embeddings as upstream: looking up the pad gives it none, but the masked genes still do."""
    ids, labels, types = batch(expected)
    table = training.network.word_embeddings.weight
    hidden = training.hidden(ids, masked=False).detach()
    genes = training.masked(hidden, labels, table, training.network.gene_head)
    (from_table,) = torch.autograd.grad(genes.loss, table)
    changed = gradient.clone()
    changed[0] = from_table[0]
    return changed


def test_norms_of_gradients(
    training: Pretraining, gradients: dict[str, torch.Tensor], expected: dict[str, np.ndarray]
) -> None:
    norms = dict(zip(expected["grad_names"].astype(str).tolist(), expected["grad_norms"].tolist(), strict=True))
    assert len(norms) == 118
    words = "bert.embeddings.word_embeddings.weight"
    ours = gradients | {words: word_gradient(training, gradients[words], expected)}
    for name, norm in norms.items():
        if not name.endswith("key.bias"):  # zero up to rounding
            assert ours[name].norm().item() == pytest.approx(norm, rel=1e-3), name


@pytest.mark.parametrize(
    ("array", "name"),
    [
        ("centroid", "learned_centroid.weight"),
        ("affine", "affine_projection.weight"),
        ("cls_dense_2", "cls.predictions.dense_2.weight"),
        ("cell_cls_dense_1", "cell_cls.predictions.dense_1.weight"),
        ("layer0_query", "bert.encoder.layer.0.attention.self.query.weight"),
        ("layer0_ffn_in", "bert.encoder.layer.0.intermediate.dense.weight"),
        ("emb_layernorm", "bert.embeddings.LayerNorm.weight"),
        ("tf_class", "bert.embeddings.tf_class_embeddings.weight"),
    ],
)
def test_gradients(gradients: dict[str, torch.Tensor], expected: dict[str, np.ndarray], array: str, name: str) -> None:
    wanted = expected[f"grad_{array}"]
    ours = gradients[name][: len(wanted)].numpy()
    assert np.linalg.norm(ours - wanted) <= 1e-3 * np.linalg.norm(wanted)


def test_the_objective_is_their_sum(folder: Path, training: Pretraining, expected: dict[str, np.ndarray]) -> None:
    """Two passes of a cell in one batch give upstream's loss, and the gradients of the losses one by one."""
    training = copy.deepcopy(training)
    network, objective = training.network, ScCello()
    cells, targets, types = batch(expected)
    config = SimpleNamespace(config=SimpleNamespace(hidden_size=network.config.hidden_size, tau=training.tau))
    with pytest.warns(UserWarning, match="dropout"):
        objective.build(config, network, ["T cell"])
    for name in ("coherence", "regularisation", "alignment"):
        setattr(objective, name, getattr(training, name))
    n, length = cells.shape
    twice = cells.repeat(2, 1).flatten().numpy()
    tokens = TokenBatch(np.tile(np.arange(n), 2), twice, np.full(2 * n, length), tags=np.repeat([0, 1], n))
    wanted = TrainingBatch(tokens, targets.repeat(2, 1).flatten().numpy(), types.repeat(2).numpy())
    step = training(cells, targets, types, masked=False)
    names = dict(training.named_parameters())
    gradients = torch.autograd.grad(step.total, list(names.values()))
    hidden = network(torch.from_numpy(tokens.tokens), tokens.lengths)
    term = objective(Outputs(network, hidden, hidden), wanted)
    assert objective.count(wanted) == n
    assert term.total.item() / n == pytest.approx(float(expected["loss_total"]), rel=2e-5)
    ours = torch.autograd.grad(term.total / n, list(names.values()))
    for name, one, other in zip(names, ours, gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-6, name
