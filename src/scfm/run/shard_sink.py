"""From batches to finished shards of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from scfm.run.store import COUNTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filelock import FileLock
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.run.engine import RunStats
    from scfm.run.store import EmbeddingStore, Shard

__all__ = ["ShardSink"]


class ShardSink:
    """Collect the embeddings of shards, one after the other, and store each when it is complete.

    A context manager: the shard at hand is locked, from before the first of them comes.

    Parameters
    ----------
    store
        Where they go.
    shards
        The shards of the run, one at least, in the order in which their cells come.
    wait
        Seconds to wait for a shard that another process is computing.
    """

    def __init__(self, store: EmbeddingStore, shards: Sequence[Shard], wait: float = 0) -> None:
        self._store = store
        self._waiting = list(shards)
        self._wait = wait
        self._lock: FileLock | None = None
        self._before = dict.fromkeys(COUNTED, 0)
        self._values = self._empty()

    def __enter__(self) -> Self:
        self._lock = self._store.lock(self._waiting[0], self._wait)
        return self

    def __exit__(self, *args: object) -> None:
        if self._lock is not None:
            self._lock.release()

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Keep one vector per cell, shape ``(n_cells, n_features)``."""
        self._values[batch.rows - self._waiting[0].start] = output.float().cpu().numpy()

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Store the shard if this was its last block."""
        if stop < self._waiting[0].stop:
            return
        now = {name: getattr(stats, name) for name in COUNTED}
        facts = {name: now[name] - self._before[name] for name in COUNTED}
        shard = self._waiting.pop(0)
        # the next lock comes before the marker, so that a second run always finds one
        following = self._store.lock(self._waiting[0], self._wait) if self._waiting else None
        self._store.write(shard, self._values, facts)
        self.__exit__()
        self._lock = following
        self._before, self._values = now, self._empty()

    def _empty(self) -> NDArray[np.float32]:
        n_rows = self._waiting[0].stop - self._waiting[0].start if self._waiting else 0
        return np.full((n_rows, self._store.n_features), np.nan, dtype=np.float32)
