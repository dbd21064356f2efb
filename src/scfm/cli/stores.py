"""Commands about stores that are filled shard by shard."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from scfm._package import pip_install
from scfm.cli.verbs import genes_of, model_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["embed_store", "merge", "perturb_store", "status"]


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


def perturb_store(
    verb: Callable[..., Path],
    *,
    model: str,
    out: Path,
    genes: list[str] | None = None,
    family: str | None = None,
    dictionaries: list[str] | None = None,
    scheduler: str | None = None,
    local_cluster: int | None = None,
    **arguments: Any,
) -> None:
    """Fill a store with effects of perturbations.

    Parameters
    ----------
    genes
        Genes to change, one by one; A+B changes both together. By default each gene that a cell expresses.
    scheduler
        Address of a dask scheduler, whose workers then do the work.
    local_cluster
        Start a dask cluster of as many processes on this machine.
    """
    filled = partial(verb, genes=genes_of(genes))
    embed_store(
        filled,
        model=model,
        out=out,
        family=family,
        dictionaries=dictionaries,
        scheduler=scheduler,
        local_cluster=local_cluster,
        **arguments,
    )


def status(store: Path) -> None:
    """Say how much is done.

    Parameters
    ----------
    store
        Folder that `scfm embed-store` or `scfm perturb-store` fills.
    """
    print(progress(store))


def merge(verb: Callable[..., Path], store: Path, target: Path, **arguments: Any) -> None:
    """Add results to the file of the cells.

    Parameters
    ----------
    store
        Folder that `scfm embed-store` or `scfm perturb-store` filled.
    target
        The file of the cells, which is changed.
    """
    verb(store, target, **arguments)
    print(f"added the results of {store} to {target}")


def progress(path: Path) -> str:
    """How much of a store is done, in a line."""
    from scfm._text import some
    from scfm.run.store import ShardStore

    store = ShardStore.open(path)
    missing = store.missing()
    n, total = (sum(shard.work for shard in shards) for shards in (missing, store.shards))
    done = f"{len(store.shards) - len(missing)} of {len(store.shards)} shards"
    text = f"{path}: {done}, {total - n:,} of {total:,} {store.unit}s"
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
