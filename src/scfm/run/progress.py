"""Progress bars."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from scfm._compat import bar_hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    Advance = Callable[[int], object]
    Bar = Callable[[int, bool | None], AbstractContextManager[Advance]]

__all__ = ["cells_bar", "use_bar"]


@contextmanager
def _tqdm_bar(total: int, progress: bool | None) -> Iterator[Advance]:
    from tqdm.auto import tqdm

    with tqdm(total=total, unit="cell", desc="embed", disable=bar_hidden(progress)) as bar:
        yield bar.update


_bar: ContextVar[Bar] = ContextVar("scfm_bar", default=_tqdm_bar)


def cells_bar(total: int, progress: bool | None) -> AbstractContextManager[Advance]:
    """Show a progress bar over ``total`` cells; gives a function that takes the number of cells done since the last call.

    With ``progress=None``, on terminals and in notebooks only.
    """
    return _bar.get()(total, progress)


@contextmanager
def use_bar(bar: Bar) -> Iterator[None]:
    """Use another kind of progress bar within a block."""
    token = _bar.set(bar)
    try:
        yield
    finally:
        _bar.reset(token)
