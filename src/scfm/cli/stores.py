"""Commands about stores of embeddings."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scfm._package import pip_install
from scfm.cli.verbs import model_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["embed_store", "merge", "status"]


def embed_store(
    verb: Callable[..., Path],
    *,
    model: str,
    out: Path,
    family: str | None = None,
    dictionaries: list[str] | None = None,
    scheduler: str | None = None,
    local_cluster: int | None = None,
    **arguments: Any,
) -> None:
    """Fill a store.

    Parameters
    ----------
    scheduler
        Address of a dask scheduler, whose workers then do the work.
    local_cluster
        Start a dask cluster of as many processes on this machine.
    """
    with _resumable(out), _client(scheduler, local_cluster) as client:
        verb(model=model_of(model, family, dictionaries), out=out, client=client, **arguments)
    print(progress(out))


def status(store: Path) -> None:
    """Say how much is done.

    Parameters
    ----------
    store
        Folder that `scfm embed-store` fills.
    """
    print(progress(store))


def merge(store: Path, target: Path, modality: str | None = None) -> None:
    """Add embeddings to the file of the cells.

    Parameters
    ----------
    store
        Folder that `scfm embed-store` filled.
    target
        The file that was embedded, which is changed.
    """
    from scfm._write import merge_store
    from scfm.run.store import EmbeddingStore

    opened = EmbeddingStore.open(store)
    merge_store(opened, target, modality)
    print(f"added obsm[{opened.keys.obsm!r}] and uns[{opened.keys.uns!r}] to {target}")


def progress(path: Path) -> str:
    """How much of a store is done, in a line."""
    from scfm._text import some
    from scfm.run.store import EmbeddingStore

    store = EmbeddingStore.open(path)
    missing = store.missing()
    cells = sum(shard.stop - shard.start for shard in missing)
    text = f"{path}: {len(store.shards) - len(missing)} of {len(store.shards)} shards, {store.n_obs - cells:,} of {store.n_obs:,} cells"
    if missing:
        text += f"; missing shards {some((shard.number for shard in missing), 10)}"
    return text


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """Say after an interruption how far a store has got."""
    try:
        yield
    except KeyboardInterrupt:
        if out.exists():
            print(f"{progress(out)}. The same command goes on with it.", file=sys.stderr)
        raise


@contextmanager
def _client(scheduler: str | None, local_cluster: int | None) -> Iterator[Any]:
    """A dask client of a cluster that runs already, or of one that lives as long as the command."""
    if scheduler is None and local_cluster is None:
        yield None
        return
    if scheduler is not None and local_cluster is not None:
        msg = "--scheduler and --local-cluster name two different clusters; give one of them."
        raise ValueError(msg)
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        msg = f"A cluster needs dask: {pip_install('cluster')}."
        raise ImportError(msg) from error
    if scheduler is not None:
        with Client(scheduler) as client:
            yield client
        return
    with (
        LocalCluster(n_workers=local_cluster, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client
