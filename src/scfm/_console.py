"""Progress of a command: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scfm.run.progress import tqdm_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scfm.run.progress import Advance

__all__ = ["console_bar"]

SECONDS = 30.0
"""Time between two lines of a log."""


@contextmanager
def console_bar(total: int, progress: bool | None) -> Iterator[Advance]:
    """Show how many of ``total`` cells are done, how fast, and how long the rest will take.

    Parameters
    ----------
    total
        Number of cells.
    progress
        ``False``: show nothing. ``True``: a bar even where there is no terminal.
    """
    if progress is None and not sys.stderr.isatty():
        yield _Lines(total).advance
    else:
        with tqdm_bar(total, progress) as advance:
            yield advance


class _Lines:
    """A line every now and then."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._began = self._last = time.monotonic()

    def advance(self, n: int) -> None:
        """Take note of ``n`` cells more."""
        self._done += n
        now = time.monotonic()
        if now - self._last < SECONDS or not self._done:
            return
        self._last = now
        speed = self._done / (now - self._began)
        minutes = (self._total - self._done) / speed / 60
        print(
            f"{self._done:,} of {self._total:,} cells, {speed:,.0f} cells/s, {minutes:,.1f} min left",
            file=sys.stderr,
            flush=True,
        )
