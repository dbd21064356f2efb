"""Words of messages."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["some"]


def some(names: Iterable[object], n: int = 5, separator: str = ", ") -> str:
    """List the first ``n`` names and say how many more there are.

    Examples
    --------
    >>> from scfm._text import some
    >>> some(["CD3D", "LYZ", "NKG7"], 2)
    'CD3D, LYZ and 1 more'
    """
    rest = iter(names)
    shown = separator.join(map(str, islice(rest, n)))
    more = sum(1 for _ in rest)
    return f"{shown} and {more} more" if more else shown
