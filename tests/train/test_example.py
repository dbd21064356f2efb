"""The config that names every key."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest
import yaml

from scfm.train.config import PARTS, Pretraining, read_config

pytest.importorskip("lightning")


def test_the_example_is_the_default() -> None:
    from scfm.train.example import example_config

    text = example_config()
    values = yaml.safe_load(text)
    assert list(values) == [one.name for one in fields(Pretraining) if one.name not in ("views", "masking")]
    found, default = asdict(read_config(values)), asdict(Pretraining())
    assert found.pop("objectives") == {"masked_genes": {"weight": 1.0, "candidates": None}}
    default.pop("objectives")
    assert found == default


def test_parts_that_are_left_out_can_be_put_in() -> None:
    from scfm.train.example import example_config
    from scfm.train.objectives import OBJECTIVES

    lines = [line.removeprefix("# ") for line in example_config().splitlines()]
    keys = [line for line in lines if line.partition(":")[0].strip().isidentifier() and not line.endswith(".")]
    values = yaml.safe_load("\n".join(keys))
    for name, cls in PARTS.items():
        assert set(values[name]) == {one.name for one in fields(cls)}
    assert set(values["masking"]) == {"rate", "masked", "random"}
    assert set(values["objectives"]) == set(OBJECTIVES)
    assert set(values["objectives"]["contrastive"]) == {"weight", "temperature", "projection", "negatives"}
    read_config({**values, "objectives": {"masked_genes": {}}})
