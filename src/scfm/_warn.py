"""Warnings that point at the line of the caller, however deep inside the package they are raised."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path

__all__ = ["warn"]

_INSIDE = (f"{Path(__file__).parent}{os.sep}", contextlib.__file__)
"""Files whose frames are skipped: those of the package, and where its context managers are entered."""


def warn(message: str) -> None:
    """Issue a UserWarning at the first line outside the package."""
    if sys.version_info >= (3, 12):
        warnings.warn(message, UserWarning, skip_file_prefixes=_INSIDE)
    else:
        warnings.warn(message, UserWarning, stacklevel=_depth())


def _depth() -> int:
    """Level of the first frame outside the package, seen from the caller of this function."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, depth = frame.f_back, depth + 1
    return depth
