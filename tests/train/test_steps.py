"""The batches of a step: functions of the seed and the step alone, however many processes share them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from scfm.train.config import read_config
from scfm.train.objective import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scfm.train.objective import TrainingBatch
    from scfm.train.steps import Steps

pytest.importorskip("lightning")


@pytest.fixture
def steps_of(config: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Steps]:
    def make(**changes: Any) -> Steps:
        from scfm.train.plan import Plan

        run = read_config(config(**changes), out=str(tmp_path / "model"))
        return Plan.of(run, tmp_path / "model", tmp_path / "work").steps

    return make


def sequences(batches: list[TrainingBatch]) -> list[tuple[Any, ...]]:
    """Everything about each sequence, in an order of its own."""
    found = []
    for one in batches:
        borders = np.cumsum(one.batch.lengths)[:-1]
        tokens, targets = np.split(one.batch.tokens, borders), np.split(one.targets, borders)
        for row, view, *parts in zip(one.batch.rows, one.batch.tags, tokens, targets, one.sources, strict=True):
            found.append((int(view), *(tuple(part.tolist()) for part in parts[:2]), int(parts[2]), int(row)))
    return sorted(found)


def test_a_step_depends_on_the_seed_and_its_number(steps_of: Callable[..., Steps]) -> None:
    steps = steps_of()
    one = sequences(steps.batches(3))
    assert len(one) == 16  # two views of eight cells
    assert sequences(steps.batches(4)) != one
    assert sequences(steps_of().batches(3)) == one
    assert sequences(steps_of(seed=1).batches(3)) != one


def test_processes_share_the_cells_of_a_step(steps_of: Callable[..., Steps]) -> None:
    steps = steps_of()
    whole = sorted(sequence[:-1] for sequence in sequences(steps.batches(2)))
    parts = [sequence[:-1] for rank in (0, 1) for sequence in sequences(steps.batches(2, rank, 2))]
    assert sorted(parts) == whole


@pytest.mark.parametrize("changes", [{"cells_per_file": 4}, {}])
def test_a_step_is_computed_in_parts(steps_of: Callable[..., Steps], changes: dict[str, int]) -> None:
    whole = steps_of(sampling=changes).batches(0)
    assert len(whole) == 1
    parts = steps_of(sampling={"batch_tokens": 200, **changes}).batches(0)
    assert len(parts) > 1
    assert sequences(parts) == sequences(whole)
    for part in parts:
        rows, views = part.batch.rows, part.batch.tags
        assert views is not None
        assert sorted(rows[views == 0]) == sorted(rows[views == 1])  # views of a cell stay together
        assert (np.diff(part.batch.lengths) <= 0).all()
        if changes:
            assert len(rows) == 8
            assert len(set(part.sources[rows.argsort()].tolist())) == 1
        else:
            assert len(part.batch.tokens) <= 200


def test_cells_of_a_part_are_of_similar_length(steps_of: Callable[..., Steps]) -> None:
    some = {"objectives": {"masked_genes": {}}, "views": None}
    (whole,) = steps_of(**some, sampling={"batch_cells": 32}).batches(0)
    parts = steps_of(**some, sampling={"batch_cells": 32, "batch_tokens": 200}).batches(0)
    assert len(parts) > 4
    lengths = np.concatenate([part.batch.lengths for part in parts])
    assert (np.diff(lengths) <= 0).all()
    assert sorted(lengths) == sorted(whole.batch.lengths)
    assert len(set(lengths.tolist())) > 1


def test_masked_tokens_are_the_targets(steps_of: Callable[..., Steps]) -> None:
    (batch,) = steps_of(masking={"rate": 0.5, "masked": 1.0, "random": 0.0}, views=None).batches(0)
    masked = batch.targets != IGNORED
    assert 0.3 < masked.mean() < 0.7
    assert (batch.batch.tokens[masked] == 1).all()
    assert (batch.batch.tokens[~masked] > 1).all()


def test_labels_go_with_the_cells(steps_of: Callable[..., Steps]) -> None:
    (batch,) = steps_of(labels_key="cell_type").batches(0)
    assert batch.labels is not None
    assert set(batch.labels.tolist()) <= {0, 1, 2}
    by_row = {(row, label) for row, label in zip(batch.batch.rows.tolist(), batch.labels.tolist(), strict=True)}
    assert len(by_row) == 8
