"""Warnings that point at the line of the caller, however deep inside the package they are raised, in whichever thread."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["for_thread", "warn"]

P = ParamSpec("P")
R = TypeVar("R")

_INSIDE = (f"{Path(__file__).parent}{os.sep}", contextlib.__file__)
"""Files whose frames are skipped: those of the package, and where its context managers are entered."""


class _Line(NamedTuple):
    file: str
    number: int
    names: dict[str, Any]
    """Global names of the module, where Python notes what it has warned of."""


_caller: ContextVar[_Line | None] = ContextVar("scfm_caller", default=None)


def warn(message: str) -> None:
    """Issue a UserWarning at the first line outside the package."""
    line = _first_outside()
    noted = line.names.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, UserWarning, line.file, line.number, line.names.get("__name__"), noted)


def for_thread(function: Callable[P, R]) -> Callable[P, R]:
    """A function to be called in another thread, whose warnings point at the line that calls the package in this one."""
    line = _first_outside()

    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        _caller.set(line)
        return function(*args, **kwargs)

    return called


def _first_outside() -> _Line:
    """The line that calls the package; in a thread that the package has started, the one that did in the thread before."""
    if (line := _caller.get()) is not None:
        return line
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
    return _Line(frame.f_code.co_filename, frame.f_lineno, frame.f_globals)
