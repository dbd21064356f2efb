"""The anchor: distance from the embedding by the first weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from scfm.train.objective import IGNORED, Outputs
from scfm.train.objectives import Anchor

from .batches import training_batch

if TYPE_CHECKING:
    from scfm._types import TokenBatch


def test_distance_from_the_first_weights_without_masks() -> None:
    torch.manual_seed(0)
    network = torch.nn.Embedding(9, 4)
    batch = training_batch([[3, 1, 5], [1, 7]], [[IGNORED, 4, IGNORED], [6, IGNORED]])

    def embed(one: torch.nn.Module, cells: TokenBatch) -> torch.Tensor:
        return torch.stack([part.mean(dim=0) for part in one(torch.from_numpy(cells.tokens)).split([3, 2])])

    objective = Anchor()
    objective.build(SimpleNamespace(), network)  # type: ignore[arg-type]
    start = network.weight.detach().clone()
    with torch.no_grad():
        network.weight += torch.randn(9, 4)
    pooled = embed(network, batch.batch)
    term = objective(Outputs(network, pooled, pooled, embed), batch)
    wanted = [start[[3, 4, 5]].mean(dim=0), start[[6, 7]].mean(dim=0)]
    cosines = [torch.cosine_similarity(a, b, dim=0).item() for a, b in zip(pooled, wanted, strict=True)]
    assert objective.count(batch) == 2
    assert term.total.item() == pytest.approx(2 - np.sum(cosines), rel=1e-5)
    term.total.backward()
    assert network.weight.grad is not None
    assert all(not parameter.requires_grad for parameter in objective.parameters())
    assert objective.published_tensors() == {}


def test_the_copy_has_no_dropout() -> None:
    network = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Dropout(0.5))
    objective = Anchor()
    objective.build(SimpleNamespace(), network)  # type: ignore[arg-type]
    assert objective.train().training
    assert not any(module.training for module in objective.start.modules())
