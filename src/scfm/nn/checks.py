"""Checks of values from config files, which type annotations cannot guarantee."""

from __future__ import annotations

from typing import TypeGuard

__all__ = ["check_dropout", "is_int"]


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is an integer and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_dropout(value: object) -> None:
    """Raise a ValueError unless a value is a probability below 1."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        msg = f"dropout must be a number from 0 to below 1, got {value!r}."
        raise ValueError(msg)
