"""Checks of single values."""

from __future__ import annotations

from numbers import Integral
from typing import Any, TypeGuard

__all__ = ["entry_of", "is_int"]


def is_int(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, of Python or NumPy; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def entry_of(table: Any, key: str, where: str) -> Any:
    """An entry of ``obs`` or ``obsm``; a KeyError that lists those there are."""
    if key not in table:
        msg = f"{key!r} is not in {where}; found {sorted(map(str, table.keys()))}."
        raise KeyError(msg)
    return table[key]
