"""Words of messages."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["masked", "some"]

SECRETS = re.compile(
    r"(?<=://)[^/@\s'\"]+(?=@)"
    r"|(?<=[?&])(?P<name>[\w-]*(token|key|secret|password|sig|credential)[\w-]*=)[^&#\s'\"]+",
    re.IGNORECASE,
)
"""Logins before the host of an address, and values of its parameters that look like one."""


def masked(text: object) -> str:
    """A text without the logins and signatures of the addresses in it.

    Examples
    --------
    >>> from scfm._text import masked
    >>> masked("s3://me:secret@host/cells.zarr?X-Amz-Signature=abc&part=1")
    's3://***@host/cells.zarr?X-Amz-Signature=***&part=1'
    """
    return SECRETS.sub(lambda found: f"{found['name'] or ''}***", str(text))


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
