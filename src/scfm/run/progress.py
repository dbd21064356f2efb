"""Progress bars."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scfm._compat import bar_hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Advance = Callable[[int], object]

__all__ = ["progress_bar"]

DESCRIPTIONS = {"cell": "embed", "sequence": "perturb"}

FIRST_SECONDS = 10.0
"""Before the first line of a log."""
SECONDS = 30.0
"""Between two lines of a log."""


class _Lines:
    """A line on stderr every now and then, for logs.

    Parameters
    ----------
    total
        Number of cells, or of other units.
    done
        How many of them an earlier run has done.
    unit
        What they are.
    """

    def __init__(self, total: int, done: int, unit: str) -> None:
        self._total, self._before, self._done, self._unit = total, done, done, unit
        self._began = time.monotonic()
        self._next = self._began + FIRST_SECONDS

    def advance(self, n: int) -> None:
        """Take note of ``n`` more."""
        self._done += n
        now = time.monotonic()
        if now < self._next or self._done == self._before:
            return
        self._next = now + SECONDS
        speed = (self._done - self._before) / (now - self._began)
        minutes = (self._total - self._done) / speed / 60
        line = f"{self._done:,} of {self._total:,} {self._unit}s, {speed:,.0f} {self._unit}s/s, {minutes:,.1f} min left"
        print(line, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(total: int, progress: bool | None, done: int = 0, unit: str = "cell") -> Iterator[Advance]:
    """Show a progress bar over ``total`` cells, or other units; gives a function that takes the number done since the last call.

    With ``progress=None``, a bar on terminals and in notebooks, and elsewhere a line now and then. The bar starts at
    ``done``, the number that an earlier run has done.
    """
    from tqdm.auto import tqdm

    hidden = total == 0 or bar_hidden(progress)
    if hidden is None and not sys.stderr.isatty():
        yield _Lines(total, done, unit).advance
        return
    with tqdm(total=total, initial=done, unit=unit, desc=DESCRIPTIONS[unit], disable=hidden) as bar:
        yield bar.update
