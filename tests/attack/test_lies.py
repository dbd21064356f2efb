"""Files that lie are refused by one clear error, or read, at the cost of an honest file of their size."""

from __future__ import annotations

import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from scfm._paths import size_of

from ..fuzz_worker import Outcome, shared_worker
from .lies import all_lies, write_bases
from .operations import THOROUGH

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Tally
    from .lies import Lie

pytest.importorskip("resource")
pytestmark = [pytest.mark.attack, pytest.mark.filterwarnings("ignore")]
OF_EACH = 60 if THOROUGH else 1
"""Lies about each honest folder."""
MORE_BYTES, MORE_SECONDS, MOST = 100 * 10**6, 5, 5000
OURS = ("ValueError", "TypeError", "FileNotFoundError", "IsADirectoryError", "OSError")
NAMES = ("work", ".h5ad", ".zarr", "mtx")
"""What an error names: the folder of the lie, or the file."""
STATED = {"dictionary": 300 * 10**6}
"""Bytes that docs/guide/safety.md says of files that are smaller than their content."""


def test_lies(tmp_path: Path, tally: Tally) -> None:
    canary, wrong = tmp_path / "canary", []
    honest: dict[tuple[str, str], Outcome] = {}
    by_base: dict[str, list[Lie]] = {}
    write_bases(tmp_path)
    for lie in all_lies(tmp_path, canary):
        by_base.setdefault(lie.base, []).append(lie)
    rng = random.Random(os.environ.get("TEST_SEED", 0))
    for lie in (lie for lies in by_base.values() for lie in rng.sample(lies, min(len(lies), OF_EACH))):
        folder, of = tmp_path / "work", (lie.base, lie.reader)
        if of not in honest:
            shutil.copytree(tmp_path / "honest" / lie.base, folder)
            honest[of] = shared_worker()(lie.reader, folder)
            shutil.rmtree(folder)
        shutil.copytree(tmp_path / "honest" / lie.base, folder)
        try:
            lie.change(folder)
        except (ValueError, TypeError, OSError, KeyError, IndexError):
            shutil.rmtree(folder)  # not every part can lie in every way
            continue
        found, usual = shared_worker()(lie.reader, folder), honest[of]
        larger = 2 * max(0, size_of(folder) - size_of(tmp_path / "honest" / lie.base))  # an honest one of its size
        shutil.rmtree(folder)
        most = max(2 * usual.resident, usual.resident + STATED.get(lie.reader, MORE_BYTES)) + larger
        memory = found.resident / most
        seconds = found.seconds / max(2 * usual.seconds, usual.seconds + MORE_SECONDS)
        named = any(name in found.message for name in NAMES)
        clear = not found.error or (found.error in OURS and named and len(found.message) < MOST)
        executed, foreign = bool(found.forbidden) or canary.exists(), "somebody else" in found.message
        if not clear or executed or foreign or max(memory, seconds) > 1:
            wrong.append(
                f"{lie.base}, {lie.name}: {memory:.2f} {seconds:.2f} {found.forbidden} {found.error}: {found.message:.400}"
            )
        figures = {"refused": found.error != "", "executed": executed, "foreign content": foreign}
        tally(f"lies, {lie.base}", **figures, **{"memory of the bound": memory, "time of the bound": seconds})
    assert not wrong, "\n".join(wrong)
