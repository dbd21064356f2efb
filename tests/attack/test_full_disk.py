"""Disks that are full at any point of the work: a clear error, what was there is whole, and nothing half has its name."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from scfm._paths import size_of

from .operations import OPERATIONS, THOROUGH, contents

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .conftest import Tally
    from .worker import Worker

pytestmark = [pytest.mark.attack, pytest.mark.filterwarnings("ignore")]
SHARES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97) if THOROUGH else (0.5,)
"""How much of what the work takes is free."""
PAGE = 4096


@contextmanager
def disk(folder: Path, n_bytes: int) -> Iterator[None]:
    """Have a folder on a disk of its own, which only some users may make."""
    folder.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", folder], capture_output=True, check=False
        ).returncode
    ):
        folder.rmdir()
        pytest.skip("needs to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def pages(folder: Path) -> int:
    """Bytes that a folder takes on a disk."""
    return sum(PAGE + -(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*"))


@pytest.mark.parametrize("blind", [True, False] if THOROUGH else [True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_full(name: str, blind: bool, killing: Worker, tmp_path: Path, tally: Tally) -> None:
    before, folder = tmp_path / "before", tmp_path / "work"
    before.mkdir()
    OPERATIONS[name].prepare(before)
    shutil.copytree(before, folder)
    old = contents(folder)
    assert not killing(name, folder)["error"]
    new, first = contents(folder), pages(before)
    grown = max(pages(folder) - first, PAGE) + size_of(folder)  # a replaced file is there twice meanwhile
    shutil.rmtree(folder)
    for share in SHARES:
        with disk(folder, first + int(share * grown) + PAGE):
            shutil.copytree(before, folder, dirs_exist_ok=True)
            found = killing(name, folder, blind=blind)
            after = contents(folder)
            for path in {*old, *after}:
                assert after[path] in (old.get(path), new.get(path), "not yet complete"), (share, path, found)
            full = bool(found["error"])
            said = (
                "bytes free, and" in found["error"]
                or "could not be written" in found["error"]
                or "no space left" in found["error"].lower()
            )
            assert said or not full, (share, found)
            assert not [path for path in folder.rglob(".scfm-*") if path.is_dir()], share
            subprocess.run(["mount", "-o", f"remount,size={2**28}", folder], check=True)
            again = killing(name, folder)
            assert not again["error"], (share, again)
            assert contents(folder) == new, share
        tally("full disks", **{"refused": full, "named what to do": "make room" in found["error"]})
