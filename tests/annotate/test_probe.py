from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from scfm.annotate import LinearProbe, Reference, train_probe
from scfm.annotate._probe import LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY, _optimiser

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("n_steps", [100, 2000])
def test_schedule_and_decay_equal_the_trainer_of_upstream(n_steps: int) -> None:
    optimiser, schedule = _optimiser(torch.zeros(2, 3), torch.zeros(2), n_steps)
    theirs = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=LEARNING_RATE)
    other = get_linear_schedule_with_warmup(theirs, WARMUP_STEPS, n_steps)
    for _ in range(n_steps + 1):
        assert schedule.get_last_lr() == pytest.approx([*other.get_last_lr()] * 2, abs=1e-12)
        for both in (optimiser, theirs, schedule, other):
            both.step()
    assert [group["weight_decay"] for group in optimiser.param_groups] == [WEIGHT_DECAY, 0]


def test_it_learns(draw: Callable[..., Reference]) -> None:
    reference, query = draw(1000, noise=1), draw(100, seed=1, noise=1)
    probe = train_probe(reference)
    assert (probe.logits(query.values).argmax(axis=1) == query.codes).mean() > 0.95
    probabilities = probe.probabilities(query.values)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_the_seed_decides_and_that_of_torch_stays(draw: Callable[..., Reference]) -> None:
    reference = draw(100)
    state = torch.get_rng_state()
    first, again, other = train_probe(reference, seed=3), train_probe(reference, seed=3), train_probe(reference, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first.weight, again.weight)
    assert not np.array_equal(first.weight, other.weight)


def test_the_epoch_with_the_best_f1_is_kept(draw: Callable[..., Reference], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LinearProbe] = []

    def third_is_best(probe: LinearProbe, *_: object) -> float:
        seen.append(probe)
        return 1.0 if len(seen) == 3 else 0.5

    monkeypatch.setattr("scfm.annotate._probe._macro_f1", third_is_best)
    assert train_probe(draw(60)) is seen[2]
    assert len(seen) == 20


def test_a_few_cells(draw: Callable[..., Reference]) -> None:
    reference = draw(4)
    assert np.isfinite(train_probe(replace(reference, batches=None)).weight).all()
