"""Searches: what is drawn, resumed and repeated, and what is refused before the first trial."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import torch

from scfm.train import CellClassifier, CellRegressor, repeat, search

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from scfm.model import FoundationModel

pytest.importorskip("optuna")
HOW: dict[str, Any] = {"max_epochs": 2, "batch_size": 32, "accelerator": "cpu", "train_size": 0.7}
SPACE: dict[str, Any] = {
    "lr": [1e-3, 2e-2],
    "dropout": [0.0, 0.2],
    "freeze": [None, 0, 1, True],
    "schedule": ["linear", "constant"],
}


def classifier(cells: AnnData, tiny: FoundationModel, **arguments: Any) -> Any:
    CellClassifier.setup_anndata(cells, "kind")
    return CellClassifier(cells, tiny, **arguments)


def test_a_search_that_goes_on_equals_one_that_was_not_interrupted(
    cells: AnnData, tiny: FoundationModel, tmp_path: Path
) -> None:
    model = classifier(cells, tiny)
    first = search(model, out=tmp_path / "parts", n_trials=2, space=SPACE, **HOW)
    assert len(first.trials) == 2
    parts = search(model, out=tmp_path / "parts", n_trials=4, space=SPACE, **HOW)
    whole = search(model, out=tmp_path / "whole", n_trials=4, space=SPACE, **HOW)
    pd.testing.assert_frame_equal(parts.trials, whole.trials, check_exact=True)
    assert parts.trials["lr"].nunique() == 4  # no trial is drawn again
    assert set(parts.trials["state"]) <= {"complete", "pruned"}
    done = parts.trials[parts.trials["state"] == "complete"]
    assert parts.value == done["value"].max()
    again = search(model, out=tmp_path / "parts", n_trials=3, space=SPACE, **HOW)
    assert len(again.trials) == 4  # nothing is left to do
    assert not model.is_trained_

    repeated = repeat(parts.config, cells.copy(), base=tiny)
    assert repeated.fit_ is not None
    assert repeated.fit_.best == parts.value
    stored = json.loads(parts.config.read_text())
    assert stored["train"]["lr"] == parts.best["lr"]
    assert stored["arguments"]["freeze"] == parts.best["freeze"]
    with pytest.raises(ValueError, match="holds another search, which differs in seed; choose another folder"):
        search(model, out=tmp_path / "parts", n_trials=4, space=SPACE, seed=1, **HOW)


def test_trials_that_are_worse_than_others_are_ended(
    cells: AnnData, tiny: FoundationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.pruners import ThresholdPruner

    module = sys.modules["scfm.train.supervised.search"]
    plain = module._study

    def study(path: Path, monitor: str) -> Any:
        found = plain(path, monitor)
        found.pruner = ThresholdPruner(lower=0.0 if not found.trials else 2.0)
        return found

    monkeypatch.setattr(module, "_study", study)
    model, space = classifier(cells, tiny), {"lr": [1e-3, 1e-2]}
    search(model, out=tmp_path, n_trials=1, space=space, **HOW)
    found = search(model, out=tmp_path, n_trials=2, space=space, **HOW)
    assert found.trials["state"].tolist() == ["complete", "pruned"]
    assert found.best["lr"] == found.trials["lr"][0]


def test_a_trial_that_diverges_does_not_end_the_search(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    head = torch.nn.Sequential(torch.nn.Linear(16, 3), torch.nn.Threshold(1e9, float("nan")))
    model = classifier(cells, tiny, head=head)
    with pytest.raises(ValueError, match="No trial had a validation_loss that is a number"):
        search(model, out=tmp_path, n_trials=2, space={"lr": [1e-3, 1e-2]}, monitor="validation_loss", **HOW)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"learning_rate": [1e-3, 1e-2]}, "space: 'learning_rate' is not searched; there are lr, head_lr"),
    "range": ({"lr": [1e-3]}, r"space: lr is a range \[low, high\], got \[0.001\]"),
    "reversed": ({"lr": [1e-2, 1e-3]}, r"space: lr is a range \[low, high\]"),
    "no choice": ({"freeze": []}, "space: freeze is a list of choices"),
    "text": ({"schedule": "linear"}, "space: schedule is a list of choices, got 'linear'"),
    "schedule": ({"schedule": ["steps"]}, "space: schedule is one of 'linear', 'cosine', 'constant', got 'steps'"),
    "layers": ({"freeze": [0, 7]}, "space: freeze is None, True or a number of layers up to 2, got 7"),
    "rank": ({"lora": [0]}, "space: lora is None or a rank of at least 1, got 0"),
    "batch": ({"batch_size": [16, 0]}, "space: batch_size is a whole number of at least 1, got 0"),
    "dropout": ({"dropout": [0, 1]}, "space: dropout is at least 0 and below 1"),
    "both": ({"freeze": [0], "lora": [2]}, "freeze and lora exclude each other"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_spaces_that_cannot_be_searched(kind: str, cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    space, match = WRONG[kind]
    with pytest.raises(ValueError, match=match):
        search(classifier(cells, tiny), out=tmp_path / "none", space=space, **HOW)
    assert not (tmp_path / "none").exists()


def test_what_a_search_cannot_do(cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    model = classifier(cells, tiny, lora=2)
    with pytest.raises(ValueError, match="exclude each other, also where the model has one of them"):
        search(model, out=tmp_path, space={"freeze": [1, 2]}, **HOW)
    with pytest.raises(ValueError, match="checkpoint_dir= belongs to one run; trials are kept in out="):
        search(model, out=tmp_path, checkpoint_dir=tmp_path / "run", **HOW)
    with pytest.raises(ValueError, match="n_trials must be at least 1, got 0"):
        search(model, out=tmp_path, n_trials=0, **HOW)
    with pytest.raises(TypeError, match="must be numbers, texts or paths in a search"):
        search(model, out=tmp_path, logger=object(), **HOW)
    CellRegressor.setup_anndata(cells, "age")
    with pytest.raises(
        ValueError, match="monitor='validation_macro_f1' is not known; there are 'validation_loss', 'validation_r2'"
    ):
        search(CellRegressor(cells, tiny), out=tmp_path, **HOW)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not the best.json of a search"):
        repeat(tmp_path / "other.json", cells)
