"""Calls that are killed, at any moment and at every step that changes a name: what was there, or the result, is whole."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from .operations import HIDDEN, OPERATIONS, THOROUGH, contents

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Tally
    from .worker import Worker

pytestmark = [pytest.mark.attack, pytest.mark.filterwarnings("ignore")]
RANDOM, PLACED = (20, None) if THOROUGH else (1, 1)
"""Kills of each operation; ``None``: one at each of its steps."""


def litter(folder: Path) -> list[Path]:
    """Folders in which processes worked that were killed."""
    return [path for path in folder.rglob(".*") if path.name.startswith(HIDDEN) and path.is_dir()]


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed(name: str, killing: Worker, tmp_path: Path, tally: Tally) -> None:
    before, folder = tmp_path / "before", tmp_path / "work"
    before.mkdir()
    OPERATIONS[name].prepare(before)
    old, rng = contents(before), random.Random(name)
    shutil.copytree(before, folder)
    usual = killing(name, folder)
    assert not usual["error"]
    new = contents(folder)
    assert new[OPERATIONS[name].result] != old.get(OPERATIONS[name].result)

    def kill(kind: str, **how: Any) -> None:
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        found = killing(name, folder, **how)
        assert found["killed"] or not found["error"], (how, found)
        after = contents(folder)  # which reads everything
        partial = {path for path, digest in after.items() if digest == "not yet complete"}
        for path in {*old, *after} - partial:
            assert after.get(path) in (old.get(path), new.get(path)), (how, path)
        left = len(litter(folder))
        again = killing(name, folder)
        assert not again["error"], (how, again)
        assert contents(folder) == new, how
        assert not litter(folder) or not again["steps"], how  # unless nothing was left to do
        tally(f"kills, {kind}", **{"killed": found["killed"], "left a folder": left > 0})

    for _ in range(RANDOM):
        kill("random", after=rng.random() * usual["seconds"])
    steps = range(usual["steps"])
    for step in steps if PLACED is None else sorted(rng.sample(steps, min(PLACED, len(steps)))):
        kill("placed", at=step)
