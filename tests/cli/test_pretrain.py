"""The command ``pretrain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

import scfm
from scfm.cli import main

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("lightning")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    scfm.datasets.pbmc68k()[:60].write_h5ad(tmp_path / "cells.h5ad")
    sizes = {"n_layers": 1, "hidden_size": 16, "n_heads": 2, "intermediate_size": 16, "max_positions": 64}
    values = {
        "files": [str(tmp_path / "cells.h5ad")],
        "out": str(tmp_path / "model"),
        "family": "scfm_mini",
        "steps": 2,
        "architecture": sizes,
        "genes": {"source": "scfm-mini"},
        "sampling": {"batch_cells": 8},
        "machine": {"accelerator": "cpu"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_run_out_of_a_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--config", str(run), "--steps", "3"]) == 0
    out = run.parent / "model"
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert scfm.model.load(out).card.training["run"]["steps"] == 3


def test_a_dry_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", str(run.parent / "cells.h5ad"), "--config", str(run), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("1 files, 60 cells, 13,814 genes, ")
    assert "; 2 steps of " in said
    assert sorted(path.name for path in run.parent.iterdir()) == ["cells.h5ad", "run.yaml"]


def test_a_key_that_is_not_known(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.write_text("step: 3")
    assert main(["pretrain", "--config", str(run)]) == 1
    assert f"scfm: ValueError: {run}: step is not known; did you mean steps?" in capsys.readouterr().err


def test_an_example_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--example-config"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["steps"] == 10_000
    assert values["sampling"]["power"] == 0.5
