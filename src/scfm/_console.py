"""Progress of a command: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from scfm.run.progress import Lines, on_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scfm.run.progress import Advance

__all__ = ["console_bar"]


@contextmanager
def console_bar(total: int, progress: bool | None, done: int = 0) -> Iterator[Advance]:
    """Show how many of ``total`` cells are done, how fast, and how long the rest will take.

    Parameters
    ----------
    total
        Number of cells.
    progress
        ``False``: show nothing. ``True``: a bar even where there is no terminal.
    done
        How many of the cells an earlier run has done.
    """
    if progress is False or total == 0:
        yield lambda _: None
    elif progress or on_terminal():
        with _bar(total, done) as advance:
            yield advance
    else:
        yield Lines(total, done).advance


@contextmanager
def _bar(total: int, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        """Cells a second."""

        def render(self, task: object) -> Text:
            speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
            return Text("" if speed is None else f"{speed:,.0f} cells/s")

    cells = TextColumn("{task.completed:,.0f} of {task.total:,.0f} cells")
    columns = (TextColumn("embed"), BarColumn(), cells, Speed(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("embed", total=total, completed=done)
        yield lambda n: bar.advance(task, n)
