"""Runs out of YAML files: what is known, what is not, and what takes precedence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from scfm.train.config import Pretraining, differences, plain, read_config

if TYPE_CHECKING:
    from pathlib import Path


def test_files_mappings_and_objects(tmp_path: Path) -> None:
    values = {"files": "a.h5ad", "optimiser": {"learning_rate": 2e-3, "betas": [0.9, 0.95]}, "views": {"cut": 1.0}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    read = read_config(path)
    assert read == read_config(values) == read_config(read)
    assert (read.files, read.optimiser.betas, read.optimiser.learning_rate) == (["a.h5ad"], (0.9, 0.95), 2e-3)
    assert read.views is not None
    assert (read.views.cut, read.steps) == (1.0, Pretraining().steps)
    assert read_config(path, steps=3, seed=None).steps == 3
    assert read_config(read, steps=3).steps == 3
    assert read_config(yaml.safe_load(yaml.safe_dump(plain(read)))) == read


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {}}, "config: optimizer is not known; did you mean optimiser?"),
        (
            {"optimiser": {"learning_rat": 1}},
            "optimiser.learning_rat is not known; did you mean optimiser.learning_rate?",
        ),
        ({"foo": 1}, "foo is not known; there are files, out, steps"),
        ({"steps": "many"}, '"steps": Expected .*int.*many'),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"optimiser": 3}, "optimiser holds 3, expected names and values"),
        ({"optimiser": {"schedule": "step"}}, "optimiser.schedule.*'cosine', 'linear', 'constant'"),
        ({"optimiser": {"learning_rate": -1.0}}, "optimiser.learning_rate must be between 0 and 1, got -1.0"),
        ({"optimiser": {"clip": -1.0}}, "optimiser.clip must not be negative"),
        ({"optimiser": {"final": 2.0}}, "optimiser.final must be between 0 and 1"),
        ({"sampling": {"power": 2.0}}, "sampling.power must be between 0 and 1"),
        ({"sampling": {"batch_cells": 0}}, "sampling.batch_cells must be at least 1"),
        ({"sampling": {"memory_gb": 0.0}}, "sampling.memory_gb must be above 0"),
        ({"sampling": {"batch_cells": 9}, "machine": {"devices": 2}}, "batch_cells=9 must be a multiple of"),
        ({"sampling": {"cells_per_file": 5}}, "batch_cells=64 must be a multiple of"),
        ({"views": {"cut": 3.0}}, "cut must be between 0 and 1, got 3.0"),
        ({"validation": {"cells": -1}}, "validation.cells must be at least 0"),
        ({"machine": {"threads": 0}}, "machine.threads must be at least 1"),
        ({"genes": {"min_share": 1.5}}, "genes.min_share must be between 0 and 1"),
        ({"objectives": {}}, "objectives is empty"),
    ],
)
def test_what_is_not_known(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        read_config(values)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config= takes a YAML file"):
        read_config(tmp_path / "no.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="bad.yaml is no YAML"):
        read_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 3")
    with pytest.raises(ValueError, match="list.yaml holds a list, expected names and values"):
        read_config(tmp_path / "list.yaml")
    (tmp_path / "none.yaml").write_text("")
    assert read_config(tmp_path / "none.yaml") == Pretraining()


def test_differences() -> None:
    one = plain(Pretraining())
    assert differences(one, one) == []
    assert differences(one, {**one, "out": "x", "description": "y"}) == []
    assert differences(one, {**one, "seed": 3, "steps": 4}) == ["seed", "steps"]
