"""The contrast of two views against its formula."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scfm.train.objective import Outputs, TrainingBatch
from scfm.train.objectives import Contrastive
from scfm.train.objectives.contrastive import pairs

from .batches import training_batch

ROWS = [4, 2, 4, 7, 2, 7, 9]
VIEWS = [0, 1, 1, 1, 0, 0, 0]
"""Cells 2, 4 and 7 have two views, cell 9 has one."""
SOURCES = [0, 1, 0, 1, 1, 1, 0]


def batch_of(**more: Any) -> TrainingBatch:
    return training_batch([[1]] * 7, rows=ROWS, views=VIEWS, **more)


def pooled() -> torch.Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)


def built(**options: Any) -> Contrastive:
    torch.manual_seed(0)
    objective = Contrastive(**options)
    objective.build(SimpleNamespace(n_features=5), torch.nn.Identity())  # type: ignore[arg-type]
    return objective


def expected(vectors: np.ndarray, tau: float, allowed: np.ndarray) -> float:
    """Sum over cells of the mean of both directions."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    one, other = unit[[4, 0, 5]], unit[[1, 2, 3]]
    total = 0.0
    for i in range(3):
        for a, b in ((one, other), (other, one)):
            scores = [math.exp(a[i] @ b[j] / tau) for j in range(3) if allowed[i, j]]
            total -= math.log(math.exp(a[i] @ b[i] / tau) / sum(scores)) / 2
    return total


def test_pairs() -> None:
    first, second = pairs(batch_of())
    np.testing.assert_array_equal(first, [4, 0, 5])
    np.testing.assert_array_equal(second, [1, 2, 3])
    assert built().count(batch_of()) == 3


@pytest.mark.parametrize("negatives", ["all", "source"])
def test_formula(negatives: str) -> None:
    objective, vectors = built(temperature=0.3, negatives=negatives), pooled()
    batch = batch_of(sources=np.array(SOURCES))
    source = np.array([1, 0, 1])
    allowed = np.ones((3, 3), bool) if negatives == "all" else source[:, None] == source
    term = objective(Outputs(torch.nn.Identity(), vectors, vectors), batch)
    assert term.total.item() == pytest.approx(expected(vectors.detach().numpy(), 0.3, allowed), rel=1e-5)
    term.total.backward()
    assert torch.isfinite(vectors.grad).all()
    assert not vectors.grad[6].any()  # the cell with one view
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = objective(Outputs(torch.nn.Identity(), vectors, vectors), batch)
    assert torch.equal(same.total, term.total)


def test_views_that_agree_are_recognised() -> None:
    vectors = torch.eye(10)[ROWS]
    term = built(temperature=0.05)(Outputs(torch.nn.Identity(), vectors, vectors), batch_of())
    assert term.total.item() < 1e-6
    assert term.metrics["accuracy"].item() == 3


def test_projection() -> None:
    objective, vectors = built(projection=3), pooled()
    projected = objective.head(vectors).detach().numpy()
    assert projected.shape == (7, 3)
    term = objective(Outputs(torch.nn.Identity(), vectors, vectors), batch_of())
    assert term.total.item() == pytest.approx(expected(projected, 0.1, np.ones((3, 3), bool)), rel=1e-5)
    assert objective.published_tensors() == {}
    assert objective.state() == {"name": "Contrastive", "temperature": 0.1, "projection": 3, "negatives": "all"}


def test_sources_that_are_not_said() -> None:
    with pytest.raises(ValueError, match="needs the source of each sequence, which this batch lacks"):
        built(negatives="source")(Outputs(torch.nn.Identity(), pooled(), pooled()), batch_of())


def test_arguments_out_of_bounds() -> None:
    for arguments, message in (
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"projection": -1}, "projection"),
        ({"negatives": "batch"}, "'all' others, or from those of the same 'source'"),
    ):
        with pytest.raises(ValueError, match=message):
            Contrastive(**arguments)  # type: ignore[arg-type]
