"""Files that lie are refused by one clear error, or read, at the cost of an honest file of their size."""

from __future__ import annotations

import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from ..fuzz_worker import shared_worker
from .lies import all_lies, write_bases
from .operations import THOROUGH

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Tally

pytest.importorskip("resource")
pytestmark = [pytest.mark.attack, pytest.mark.filterwarnings("ignore")]
MANY, PARTS = 2000 if THOROUGH else 120, 4
MORE_BYTES, MORE_SECONDS = 100 * 10**6, 5
OURS = ("", "ValueError", "TypeError", "FileNotFoundError", "FileExistsError", "OSError")


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lies")


@pytest.fixture(scope="module")
def readers(top: Path) -> dict[str, str]:
    return write_bases(top)


@pytest.mark.parametrize("part", range(PARTS))
def test_lies(part: int, top: Path, readers: dict[str, str], tmp_path: Path, tally: Tally) -> None:
    canary, honest, wrong = tmp_path / "canary", {}, []
    lies = all_lies(top, canary)
    by_base: dict[str, list] = {}
    for lie in lies:
        by_base.setdefault(lie.base, []).append(lie)
    rng = random.Random(f"{part} {os.environ.get('TEST_SEED', '')}")
    chosen = [
        lie for found in by_base.values() for lie in rng.sample(found, min(len(found), MANY // PARTS // len(by_base)))
    ]
    for lie in chosen:
        reader, folder = lie.reader or readers[lie.base], tmp_path / "work"
        if (lie.base, reader) not in honest:
            shutil.copytree(top / "honest" / lie.base, folder)
            honest[lie.base, reader] = usual = shared_worker()(reader, folder)
            assert not usual.error or reader == "dictionary", (lie, usual)
            shutil.rmtree(folder)
        usual = honest[lie.base, reader]
        shutil.copytree(top / "honest" / lie.base, folder)
        try:
            lie.change(folder)
        except (ValueError, TypeError, OSError, KeyError, IndexError, NotADirectoryError):
            shutil.rmtree(folder)  # not every part can lie in every way
            continue
        found = shared_worker()(reader, folder)
        shutil.rmtree(folder)
        memory = found.resident / max(2 * usual.resident, usual.resident + MORE_BYTES)
        seconds = found.seconds / max(2 * usual.seconds, usual.seconds + MORE_SECONDS)
        why = [
            *(["error"] if found.error not in OURS or len(found.message) > 5000 else []),
            *(["memory"] if memory > 1 else []),
            *(["time"] if seconds > 1 else []),
            *(["executed"] if found.forbidden or canary.exists() else []),
        ]
        if why:
            wrong.append(
                f"{why} {lie.base} {lie.name}: {found.error} {found.message[:300]} {memory:.2f} {seconds:.2f} {found.forbidden}"
            )
        figures = {
            "refused": found.error != "",
            "executed": "executed" in why,
            "foreign": "somebody else" in found.message,
        }
        tally(f"lies, {lie.base}", **figures, memory=memory, time=seconds)
    assert not wrong, "\n".join(wrong)
