"""Shards of a store, computed by the workers of a dask cluster."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distributed import WorkerPlugin, as_completed

from scfm._settings import settings
from scfm.model import load
from scfm.run.store import EmbeddingStore, ShardSink

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from distributed import Client, Worker

    from scfm.model import FoundationModel
    from scfm.run.store import Shard

__all__ = ["Job", "fill_with"]

logger = logging.getLogger("scfm")

RETRIES = 3
_SETTINGS = ("threads", "block_rows", "block_values", "batch_tokens", "cache_dir", "offline")

_models: dict[str, FoundationModel] = {}
"""The models of this worker process."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to compute shards of a store."""

    source: Path
    model: str
    store: Path
    arguments: dict[str, Any]
    """Arguments of :meth:`scfm.model.FoundationModel.session`."""
    settings: dict[str, Any] = field(default_factory=lambda: {name: getattr(settings, name) for name in _SETTINGS})


class LoadModel(WorkerPlugin):
    """Loads a model in every worker, also in those that join later, so that no shard waits for it twice."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.name = f"scfm-{job.model}"

    def setup(self, worker: Worker) -> None:
        """Load the model; called by the worker."""
        _prepared(self.job)


def fill_with(client: Client, job: Job, shards: Sequence[Shard]) -> None:
    """Compute shards on a cluster. A worker that is lost costs the shard at hand, which goes to another one.

    Raises
    ------
    Exception
        What the first shard raised that could not be computed; finished shards stay.
    """
    client.register_plugin(LoadModel(job))
    futures = client.map(
        _compute_shard, [shard.number for shard in shards], job=job, pure=False, retries=RETRIES, key="scfm-shard"
    )
    try:
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            logger.info("%d of %d shards done", done, len(shards))
    finally:
        client.cancel(futures)


def _compute_shard(number: int, job: Job) -> int:
    """Compute one shard, unless it is there already; its result is on disk, not in the answer."""
    store = EmbeddingStore.open(job.store)
    shard = store.shards[number]
    with store.locked([shard]):
        if not store.is_done(shard):
            with _prepared(job).session(job.source, **job.arguments) as session:
                session.into(ShardSink(store, [shard]), spans=[(shard.start, shard.stop)])
    return number


def _prepared(job: Job) -> FoundationModel:
    for name, value in job.settings.items():
        setattr(settings, name, value)
    if job.model not in _models:
        _models[job.model] = load(job.model)
    return _models[job.model]
