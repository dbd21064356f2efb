"""Processes that compute on request: both ends of the talk with them, and what they measure about themselves.

Needs nothing but Python, so that peers can use it in environments of their own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]


class Worker:
    """A process that runs a module of benchmarks, which calls :func:`serve`.

    It runs in ``folder``, because upstream writes logs to where it runs.
    """

    def __init__(self, command: list[str], folder: Path) -> None:
        self._log = folder / "worker.log"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": path},
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        self._process.communicate()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"do": do} | arguments, default=str), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            line = ""
        else:
            line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            text = self._log.read_text()[-3000:]
            msg = f"{self._process.args!r} broke off at {do}:\n{text}"
            raise RuntimeError(msg)
        reply: dict[str, Any] = json.loads(line)
        return reply


def serve(worker: object) -> None:
    """Call a method for each line ``{"do": its name, argument: value, …}``, and print what it returns."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to the log
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(worker, request.pop("do"))(**request)), file=replies, flush=True)


def peak_rss() -> int:
    """Peak resident memory of this process in bytes.

    On Linux not by ``ru_maxrss``: a child starts with the peak of the process that it was forked from.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return 1024 * (found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


class Stopwatch:
    """Adds up the seconds between the start of one module and the end of another."""

    def __init__(self, first: Any, last: Any) -> None:
        self.seconds = 0.0
        first.register_forward_pre_hook(self._start)
        last.register_forward_hook(self._stop)

    def _start(self, *_: object) -> None:
        self.seconds -= perf_counter()

    def _stop(self, *_: object) -> None:
        self.seconds += perf_counter()
