"""Shards of a store, computed by the workers of a dask cluster."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from distributed import WorkerPlugin, as_completed, get_worker

from scfm._settings import settings
from scfm.model import load
from scfm.run.progress import progress_bar
from scfm.run.store import ShardStore
from scfm.tl._work import fill

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from distributed import Client, Worker

    from scfm.model import FoundationModel
    from scfm.model.arguments import Arguments
    from scfm.run.plan import Shard
    from scfm.tl._work import Work

__all__ = ["Job", "fill_with"]

RETRIES = 3
WAIT = 60.0
"""Seconds for which a worker that was given up may go on with a shard that another one is to compute."""
_SETTINGS = ("threads", "block_rows", "block_values", "batch_tokens", "cache_dir", "offline")

_models: dict[str, FoundationModel] = {}
"""The models of this worker process."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to compute shards of a store."""

    sources: list[str]
    model: str
    store: Path
    arguments: Arguments
    work: Work
    wait: float = field(default_factory=lambda: WAIT)
    settings: dict[str, Any] = field(default_factory=lambda: {name: getattr(settings, name) for name in _SETTINGS})


class ShardWorker(WorkerPlugin):
    """Loads the model and opens the source once in every worker, also in those that join later."""

    def __init__(self, job: Job, name: str) -> None:
        self.job = job
        self.name = name

    def setup(self, worker: Worker) -> None:
        """Load the model and open the source; called by the worker."""
        for name, value in self.job.settings.items():
            setattr(settings, name, value)
        settings.progress = False  # the bar is where the client is
        if self.job.model not in _models:
            _models[self.job.model] = load(self.job.model)
        self._opened = ExitStack()
        self._session = self._opened.enter_context(
            _models[self.job.model].session(self.job.sources, self.job.arguments)
        )
        self._store = ShardStore.open(self.job.store)
        self._filler = self.job.work.open(self._session)
        self._alone = Lock()  # workers may have several threads, but a shard has use for all cores

    def teardown(self, worker: Worker) -> None:
        """Close the source; called by the worker."""
        self._opened.close()

    def compute(self, number: int) -> None:
        """Compute one shard, unless it is there already."""
        (shard,) = (shard for shard in self._store.shards if shard.number == number)
        with self._alone:
            if not self._store.is_done(shard):
                fill(self._session, self._store, self._filler, [shard], wait=self.job.wait)


def fill_with(client: Client, job: Job, shards: Sequence[Shard], done_before: int = 0) -> None:
    """Compute shards on a cluster. A worker that is lost costs the shard at hand, which goes to another one.

    Parameters
    ----------
    client, job, shards
        Where, what and how much.
    done_before
        Further cells or sequences, which an earlier run has done: progress is shown of all of them.

    Raises
    ------
    Exception
        What the first shard raised that could not be computed; finished shards stay.
    """
    name, futures = f"scfm-{uuid4()}", []
    sizes, store = {shard.number: shard.work for shard in shards}, ShardStore.open(job.store)
    bar = progress_bar(done_before + sum(sizes.values()), settings.progress, done_before, store.unit)
    with store.lock(None), bar as advance:
        try:
            client.register_plugin(ShardWorker(job, name))
            futures = client.map(
                _compute_shard, list(sizes), plugin=name, pure=False, retries=RETRIES, key=f"{name}-shard"
            )
            for future in as_completed(futures):
                advance(sizes[future.result()])
        finally:
            client.cancel(futures)
            client.unregister_worker_plugin(name)


def _compute_shard(number: int, plugin: str) -> int:
    """Have the worker compute a shard; its result is on disk, not in the answer."""
    worker: Any = get_worker()
    worker.plugins[plugin].compute(number)
    return number
