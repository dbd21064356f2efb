"""Iterate in a background thread, ahead of the consumer."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, TypeVar

from scfm._warn import for_thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["prefetch"]

Item = TypeVar("Item")


def prefetch(items: Iterable[Item], depth: int = 1) -> Iterator[Item]:
    """Iterate over ``items`` in a background thread that stays at most ``depth`` finished items ahead.

    Order is kept, an exception of ``items`` is raised in place of the item, and the thread ends when the consumer
    stops early.

    Parameters
    ----------
    items
        Iterable that the background thread consumes.
    depth
        Size of the queue.
    """
    waiting: queue.Queue[tuple[Item | None, BaseException | None, bool]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: tuple[Item | None, BaseException | None, bool]) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None, False)):
                    return
            put((None, None, True))
        except BaseException as error:  # noqa: BLE001  (it is raised again in the consumer)
            put((None, error, True))

    worker = threading.Thread(target=for_thread(work), name="scfm-prefetch", daemon=True)
    worker.start()
    try:
        while True:
            item, error, last = waiting.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        worker.join()
