"""Checks of single values."""

from __future__ import annotations

from numbers import Integral
from typing import Any, TypeGuard

__all__ = ["check_text", "entry_of", "is_int"]


def is_int(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, of Python or NumPy; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_text(name: str, value: object) -> None:
    """Raise a TypeError for an argument that is neither a string nor ``None``."""
    if value is not None and not isinstance(value, str):
        msg = f"{name}={value!r} is a {type(value).__name__}; pass one name, as a string."
        raise TypeError(msg)


def entry_of(table: Any, key: str, where: str) -> Any:
    """An entry of ``obs``, ``var`` or ``obsm``; of columns with the same name and values, the first.

    Raises
    ------
    KeyError
        If it is not there; the message lists those that are.
    ValueError
        If several columns have this name and differ.
    """
    if key not in table:
        msg = f"{key!r} is not in {where}; found {sorted(map(str, table.keys()))}."
        raise KeyError(msg)
    found = table[key]
    if not (hasattr(table, "columns") and found.ndim == 2):
        return found
    first = found.iloc[:, 0]
    if not all(first.equals(found.iloc[:, at]) for at in range(1, found.shape[1])):
        msg = f"{where} has {found.shape[1]} columns named {key!r}, which differ; rename or drop all but one of them."
        raise ValueError(msg)
    return first
