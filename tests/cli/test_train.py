"""The commands ``train`` and ``predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml

import scfm
from scfm.cli import main
from scfm.cli._commands import COMMANDS
from scfm.testing import write_geneformer

from ..train.supervised.conftest import KINDS, N_GENES, make_cells

pytest.importorskip("scvi")
pytestmark = pytest.mark.usefixtures("one_thread")
CARDIOMYOPATHY = Path(__file__).parents[2] / "scripts" / "geneformer_cardiomyopathy.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model, cells to train on, and new ones."""
    write_geneformer(tmp_path / "tiny", n_genes=N_GENES, n_layers=2, max_tokens=48)
    make_cells().write_h5ad(tmp_path / "cells.h5ad")
    make_cells(30, seed=1).write_h5ad(tmp_path / "new.h5ad")
    return tmp_path


def test_train_and_predict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, predicted = folder / "mine", folder / "predicted.h5ad"
    call = ["train", str(folder / "cells.h5ad"), "--model", str(folder / "tiny"), "--labels-key", "kind"]
    call += ["--max-epochs", "10", "--lr", "1e-2", "--batch-size", "12", "--precision", "32-true"]
    assert main([*call, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "not needed" not in shown.err  # batch_size= of other packages is, this one is not
    assert "macro_f1" in shown.out
    assert "PCA + logistic regression" in shown.out
    assert shown.out.endswith(f"wrote {out}\n")
    assert not (folder / "mine.training").exists()
    model: Any = scfm.train.load(out)
    assert model.fit_.arguments["batch_size"] == 12
    assert set(model.report_.index) == {"model", "PCA + logistic regression"}
    assert main(["predict", str(folder / "new.h5ad"), "--model", str(out), "--out", str(predicted)]) == 0
    found, expected = ad.read_h5ad(predicted), ad.read_h5ad(folder / "new.h5ad")
    scfm.tl.predict(expected, out)
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    np.testing.assert_array_equal(found.obsm["prediction_probabilities"], expected.obsm["prediction_probabilities"])
    assert (found.obs["prediction"].astype(str) == found.obs["kind"].astype(str)).mean() > 0.8
    assert main([*call, "--out", str(out)]) == 1
    assert "mine" in capsys.readouterr().err.splitlines()[-1]


def test_options_out_of_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "model": str(folder / "tiny"),
        "labels_key": ["kind", "stage"],
        "donors_key": "donor",
        "freeze": True,
        "max_epochs": 1,
        "lr": 5.0e-3,
        "train_size": 0.5,
        "validation_size": 0.25,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(options))
    call = ["train", str(folder / "cells.h5ad"), "--config", str(folder / "run.yaml"), "--out", str(folder / "mine")]
    assert main([*call, "--seed", "3"]) == 0
    assert "model: kind" in capsys.readouterr().out
    model: Any = scfm.train.load(folder / "mine")
    assert type(model).__name__ == "MultiTaskClassifier"
    assert (model.setup.columns, model.setup.donors_key) == (("kind", "stage"), "donor")
    assert model.fit_.arguments["seed"] == 3


def test_failures_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["train", str(folder / "cells.h5ad"), "--model", str(folder / "tiny"), "--out", str(folder / "mine")]
    assert main([*call, "--labels-key", "type"]) == 1
    assert "scfm: KeyError: 'type' is not a column of obs; found" in capsys.readouterr().err
    assert main([*call, "--labels-key", "kind", "--freeze", "true", "--lora", "2"]) == 1
    assert "lora= trains adapters" in capsys.readouterr().err.replace("--lora ", "lora= ")
    call = ["predict", str(folder / "new.h5ad"), "--model", str(folder / "tiny"), "--out", str(folder / "out.h5ad")]
    assert main(call) == 1
    assert "holds no trained head" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["cells.h5ad", "new.h5ad", "tiny"]


def test_annotate_by_a_trained_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "annotated.h5ad"
    call = ["annotate", str(folder / "new.h5ad"), "--reference", str(folder / "cells.h5ad"), "--labels-key", "kind"]
    call += ["--method", "finetune", "--model", str(folder / "tiny"), "--out", str(out)]
    assert main([*call, "--training", "{max_epochs: 6, lr: 0.005, accelerator: cpu}"]) == 0
    assert all(kind in capsys.readouterr().out for kind in KINDS[:1])
    found = ad.read_h5ad(out)
    assert (found.obs["annotation"].astype(str) == found.obs["kind"].astype(str)).mean() > 0.9


def test_the_settings_of_geneformer_are_a_call() -> None:
    words = ["cells.h5ad", "--config", str(CARDIOMYOPATHY), "--out", "out"]
    values = vars(COMMANDS["train"].parser().parse_args(words))
    given = yaml.safe_load(CARDIOMYOPATHY.read_text(encoding="utf-8"))
    assert {name: values[name] for name in given} == given
    assert (values["lr"], values["freeze"], values["labels_key"]) == (8.04e-4, 2, ["disease"])
