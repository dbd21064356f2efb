"""Checks of values that come from a file, where annotations promise nothing."""

from __future__ import annotations

from typing import TypeGuard

__all__ = ["is_int"]


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is an integer; ``True`` is none."""
    return isinstance(value, int) and not isinstance(value, bool)
