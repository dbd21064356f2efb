"""Pretraining: from files to a folder of a model, and what happens on the way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import scfm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., dict[str, Any]]

pytest.importorskip("lightning")


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def trained(config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    return scfm.train.pretrain(config=config(), out=folder)  # type: ignore[return-value]


def test_the_result_is_a_model(corpus: Path, trained: Path) -> None:
    model = scfm.model.load(trained)
    card = model.card
    assert (card.id, card.family, card.pooling, card.max_tokens) == ("model", "scfm_mini", "mean", 40)
    assert model.embed(corpus / "one.h5ad").shape == (80, 16)
    assert [one["name"] for one in card.training["data"]] == ["one", "two"]
    assert [(one["cells"], one["genes"]) for one in card.training["data"]] == [(80, 50), (40, 40)]
    assert all(len(one["sha256"]) == 64 for one in card.training["data"])
    assert card.training["run"]["seed"] == 0
    curves = card.training["curves"]
    assert [step for step, _ in curves["validation/masked_genes"]] == [2, 5]
    assert {"train/loss", "learning_rate", "tokens_per_second", "validation/contrastive"} <= set(curves)
    kept = sorted(path.name for path in (trained.parent / "model.training" / "checkpoints").iterdir())
    assert len(kept) == 2
    assert kept[1] == "newest-step=6.ckpt"


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    config: Make, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scfm.train.module import PretrainingModule

    step = PretrainingModule.training_step

    def interrupted(self: Any, batches: Any, number: int) -> None:
        if self.global_step == 5:
            msg = "killed"
            raise RuntimeError(msg)
        step(self, batches, number)

    run = config()
    monkeypatch.setattr(PretrainingModule, "training_step", interrupted)
    with pytest.raises(RuntimeError, match="killed"):
        scfm.train.pretrain(config=run, out=tmp_path / "model")
    monkeypatch.undo()
    assert not (tmp_path / "model").exists()
    scfm.train.pretrain(config=run, out=tmp_path / "model")
    expected, found = weights(trained), weights(tmp_path / "model")
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    curves = [
        json.loads((folder / "card.json").read_text())["training"]["curves"] for folder in (trained, tmp_path / "model")
    ]
    assert curves[0]["validation/loss"] == curves[1]["validation/loss"]


def test_another_run_does_not_go_on(config: Make, trained: Path) -> None:
    work = trained.parent / "model.training"
    other = trained.parent / "other"
    work.rename(other.with_name("other.training"))
    try:
        with pytest.raises(ValueError, match="belongs to another run, which differs in seed, steps"):
            scfm.train.pretrain(config=config(), out=other, steps=7, seed=3)
    finally:
        other.with_name("other.training").rename(work)
