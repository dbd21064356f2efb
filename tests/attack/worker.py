"""A process that forks one of its own for each call, and kills that in the middle: so nothing is imported again and again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

STEPS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "ctypes.dlsym")
"""What Python announces of the system calls that change names."""
UNSEEN = re.compile(r"\.scfm-[^/]+/[^/]+/.+")
"""Paths of what is not there yet or any more, but for the folder of the work itself."""
ROOT = Path(__file__).parents[2]
START = """
import sys, types
tests = sys.modules["tests"] = types.ModuleType("tests")  # other packages have one of that name
tests.__path__ = ["tests"]
from tests.attack.worker import serve
serve()
"""


class Worker:
    """The process, as the tests see it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", START],
            cwd=ROOT,
            env=os.environ | {"SCFM_FSYNC": "1", "SCFM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, operation: str, folder: Path, **how: Any) -> dict[str, Any]:
        """Call an operation, and say what came of it.

        ``at``: the number of the step before which it is killed, ``after``: the seconds after which, ``blind``: whether it
        believes that there is endless room. The answer is that of :func:`_child`, or ``killed``.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"operation": operation, "folder": str(folder), **how}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """Answer each line with one line."""
    import torch

    import scfm

    from . import operations

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:  # everything is compiled once
        operations.cells("a.h5ad", Path(folder))
        operations.store("a.h5ad", Path(folder))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    assert scfm.settings.fsync
    for line in sys.stdin:
        answers.write(json.dumps(_answer(**json.loads(line))) + "\n")
        answers.flush()


def _answer(operation: str, folder: str, after: float | None = None, **how: Any) -> dict[str, Any]:
    into, out = os.pipe()
    child = os.fork()
    if not child:
        os.close(into)
        _child(operation, Path(folder), os.fdopen(out, "w"), **how)
    os.close(out)
    with os.fdopen(into) as answers:
        answers.readline()  # it begins
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        found = answers.readline()
    _, status = os.waitpid(child, 0)
    if found:
        return {"killed": False, **json.loads(found)}
    return {"killed": os.WTERMSIG(status) == signal.SIGKILL, "error": f"ended by signal {os.WTERMSIG(status)}"}


def _child(operation: str, folder: Path, answers: Any, at: int = -1, blind: bool = False) -> NoReturn:
    """Say how many steps a call took, how long, and which error it ended with."""
    from .operations import OPERATIONS

    steps, error = 0, ""

    def step(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        if not event.startswith(STEPS) and not (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        named = arguments[:1] if event == "open" else arguments
        paths = [os.fsdecode(path) for path in named if isinstance(path, str | bytes | os.PathLike)]
        within = event in ("os.remove", "os.rmdir", "os.mkdir") and arguments[-1] != -1  # a name in an open folder
        if paths in (["lock"], ["new"], ["old"]) if within else any(not UNSEEN.search(path) for path in paths):
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1

    os.fsync = lambda handle: step("open", (os.readlink(f"/proc/self/fd/{handle}"), "r", os.O_RDWR))  # noqa: PTH115
    if blind:
        shutil.disk_usage = lambda path: shutil._ntuple_diskusage(2**50, 0, 2**50)  # type: ignore[assignment,attr-defined]
    answers.write("\n")
    answers.flush()
    started = time.monotonic()
    sys.addaudithook(step)
    try:
        OPERATIONS[operation].call(folder)
    except BaseException as problem:  # noqa: BLE001
        error = f"{type(problem).__name__}: {problem}"
    answers.write(json.dumps({"steps": steps, "seconds": time.monotonic() - started, "error": error}))
    answers.flush()
    os._exit(0)
