"""What is computed for the shards of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from scfm.run.sinks import ShardSink

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from scfm.model.session import Session
    from scfm.run.plan import Shard, StorePlan
    from scfm.run.sinks import Collector
    from scfm.run.store import ShardStore
    from scfm.tasks import Task

__all__ = ["Filler", "Work", "fill"]


class Filler(Protocol):
    """What it takes to fill a store with results, for the cells of a session."""

    key: str
    """Key of the results in ``uns``."""
    places: list[tuple[str, str]]
    """Slot and key of the other results in an AnnData."""
    path: str
    """Place of the first array of the store."""
    parameters: dict[str, Any]
    """What the results depend on beside the model and the cells."""
    row_bytes: int
    """Bytes that the results of a cell take, as far as that can be foreseen."""
    cells: NDArray[np.int64] | None
    """Sorted positions of the cells that are computed; all if ``None``."""

    def plan(self, shard_rows: int | None) -> StorePlan:
        """Find out what is to be in a new store; this may take a pass over the cells."""

    def task(self, store: ShardStore) -> tuple[Task, Collector]:
        """What is computed, and what collects it."""


class Work(Protocol):
    """What is computed for the cells of a store; workers of a cluster are sent it."""

    verb: ClassVar[str]
    """Name of the function of ``scfm.tl`` that does the same in memory."""

    def open(self, session: Session) -> Filler:
        """Prepare it for the cells of a session."""


def fill(
    session: Session, store: ShardStore, filler: Filler, shards: Sequence[Shard], done: int = 0, wait: float = 0
) -> None:
    """Compute shards of a store.

    Parameters
    ----------
    session, store, filler, shards
        The cells, where the results go, what is computed, and for which shards.
    done
        Further cells or sequences, which an earlier run has done: progress is shown of all of them.
    wait
        Seconds to wait for a shard that another process is computing.
    """
    task, collector = filler.task(store)
    with ShardSink(store, shards, collector, filler.cells, wait) as sink:
        task.sink = sink
        sequences = sum(shard.work for shard in shards) if store.unit == "sequence" else None
        session.run(task, sink.spans, done, sequences)
