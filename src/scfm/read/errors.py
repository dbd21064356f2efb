"""Errors of the libraries that read files, made builtin ones that name the file."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from scfm._text import masked
from scfm.read.paths import is_url

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["of_file", "reading"]

MOST = 2000
"""Characters of a message, for libraries put into it what a file says."""
BUILTIN = (
    MemoryError,
    ImportError,
    FileNotFoundError,
    PermissionError,
    TimeoutError,
    ConnectionError,
    OSError,
    KeyError,
    TypeError,
    ValueError,
)
"""What is raised, the first that fits; libraries have classes of their own, some of which take no message."""


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn whatever a library raises into a builtin error that names ``path``; one that does so already passes.

    Of an object in memory, whose path is empty, all builtin errors pass.
    """
    shown = masked(path)
    try:
        yield
    except Exception as error:
        if type(error) in BUILTIN and shown in _text(error):
            raise
        kind = _kind(error)
        if kind in (None, KeyError):  # of what is in the file, not of what the caller named
            kind = ConnectionError if is_url(path) else ValueError
        msg = f"{shown or 'The matrix'} cannot be read: {_text(error)}"
        raise kind(msg) from error


@contextmanager
def of_file(path: str) -> Iterator[None]:
    """Put ``path`` before the message of an error that comes of one of several files, unless it is in there."""
    shown = masked(path)
    try:
        yield
    except Exception as error:
        kind = _kind(error)
        if kind is None or shown in _text(error):
            raise
        msg = f"{shown}: {_text(error)}"
        raise kind(msg) from error


def _kind(error: Exception) -> type[Exception] | None:
    return next((kind for kind in BUILTIN if isinstance(error, kind)), None)


def _text(error: Exception) -> str:
    """The message, of a KeyError without the quotes, without logins."""
    quoted = isinstance(error, KeyError) and error.args
    text = masked(error.args[0] if quoted else error) or type(error).__name__
    return text if len(text) <= MOST else f"{text[:MOST]} ..."
