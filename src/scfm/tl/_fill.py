"""Results of more cells than fit into memory, into a store on disk: shared, resumed, merged."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfm._paths import check_new, check_room, check_writable
from scfm._text import masked
from scfm.model import FoundationModel, load
from scfm.model.session import counts_of
from scfm.read import check_links, expand, is_anndata_file, is_tokenized
from scfm.read.paths import is_url
from scfm.run import RunStats
from scfm.run.device import env_int
from scfm.run.plan import CHUNK_ROWS
from scfm.run.store import COUNTED, ShardStore
from scfm.tl._identity import differences, identity_of
from scfm.tl._merge_store import merge
from scfm.tl._target import FileTarget
from scfm.tl._work import fill

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distributed import Client

    from scfm.model.arguments import Arguments
    from scfm.run.plan import Shard
    from scfm.tl._work import Filler, Work

__all__ = ["Filling", "fill_store"]

logger = logging.getLogger("scfm")

_RANKS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


@dataclass(frozen=True)
class Filling:
    """How a store is filled; see :func:`scfm.tl.embed_store`."""

    shard: str | None
    shard_rows: int | None
    resume: bool
    into_source: bool


def fill_store(
    source: str | Path | Sequence[str | Path],
    model: str | Path | FoundationModel,
    out: str | Path,
    arguments: Arguments,
    work: Work,
    how: Filling,
    client: Client | None,
) -> Path:
    """Make a store or go on with it, and merge it into the source if that is asked for; see :func:`scfm.tl.embed_store`."""
    out = Path(out).expanduser()
    paths = _checked_paths(source, out, work.verb, how)
    name = None if client is None else _name_of(model)
    part = _part(how.shard)
    _check_rows(how.shard_rows)
    with load(model).session(paths, arguments) as session:
        filler = work.open(session)
        identity = identity_of(paths, session, filler.parameters)
        for path in paths if how.into_source else ():
            _check_mergeable(Path(path), work, filler, arguments.modality)
        if not out.exists():
            ShardStore.create(out, session.source, filler.plan(how.shard_rows), identity)
        store = _opened(out, work, filler, identity, how.shard_rows)
        asked = _share(store.shards, part)
        finished = store.done()
        missing = [shard for shard in asked if shard.number not in finished]
        done = sum(shard.work for shard in asked) - sum(shard.work for shard in missing)
        logger.info("%d of %d shards of %s are to be computed", len(missing), len(store.shards), store.path)
        check_room(out, store.n_bytes(missing))
        if client is None and missing:
            fill(session, store, filler, missing, done)
    if client is not None and name is not None and missing:
        from scfm.tl._cluster import Job, fill_with

        fill_with(client, Job(paths, name, out.absolute(), arguments, work), missing, done)
    if _finish(store) and how.into_source:
        for number, path in enumerate(paths):
            merge(store, Path(path), arguments.modality, number=number)
    return out


def _checked_paths(source: Any, out: Path, verb: str, how: Filling) -> list[str]:
    if how.resume and out.is_dir():
        check_writable(out)
    else:
        check_new(out, hint="go on with it by resume=True")
    found = expand(source)
    paths = found if isinstance(found, list) else [found]
    if len(paths) > 1 and is_tokenized(paths):
        msg = f"tl.{verb}_store takes one tokenised dataset, got {len(paths)} files; pass the folder that holds them."
        raise ValueError(msg)
    for path in paths if how.into_source else ():
        if is_url(path) or (Path(path).exists() and not is_anndata_file(Path(path))):
            msg = f"into_source=True cannot write to {masked(path)}; use scfm.tl.{verb}_store without it."
            raise ValueError(msg)
        check_links(Path(path))
    return [str(path) if is_url(path) else str(Path(path).absolute()) for path in paths]


def _check_mergeable(path: Path, work: Work, filler: Filler, modality: str | None) -> None:
    """Find out before the long work whether the results can be added to a file."""
    target = FileTarget(path, path, modality, work.verb)
    target.check_free(filler.key, *filler.places)
    check_writable(path.resolve().parent)
    if not path.is_dir():  # the copy of a zarr store shares the files of its chunks
        target.check_room(filler.row_bytes)


def _name_of(model: str | Path | FoundationModel) -> str:
    if isinstance(model, FoundationModel):
        msg = "With client= the model is loaded by the workers: give its name or folder, not the loaded model."
        raise TypeError(msg)
    return str(Path(model).expanduser().absolute()) if Path(model).expanduser().is_dir() else str(model)


def _part(shard: str | None) -> tuple[int, int]:
    """Which part of how many, counted from 0."""
    if shard is None:
        return 0, 1
    if shard == "auto":
        for names in _RANKS:
            rank, size = map(env_int, names)
            if rank is not None and size is not None:
                if rank < size:
                    return rank, size
                msg = f"{names[0]}={rank} and {names[1]}={size} in the environment: parts are counted from 0 to {size - 1}."
                raise ValueError(msg)
        known = " or ".join("/".join(names) for names in _RANKS)
        msg = f"shard='auto' found none of {known} in the environment; pass shard='1/4' and so on."
        raise ValueError(msg)
    first, slash, last = shard.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        msg = f"shard={shard!r} is no part of the work; parts are counted from 1, as in '1/4' to '4/4'."
        raise ValueError(msg)
    return int(first) - 1, int(last)


def _share(shards: list[Shard], part: tuple[int, int]) -> list[Shard]:
    number, of = part
    return shards[len(shards) * number // of : len(shards) * (number + 1) // of]


def _check_rows(asked: int | None) -> None:
    if asked is not None and (asked < 1 or (asked > CHUNK_ROWS and asked % CHUNK_ROWS)):
        msg = f"shard_rows={asked} must be a multiple of {CHUNK_ROWS}, or from 1 to {CHUNK_ROWS}."
        raise ValueError(msg)


def _opened(out: Path, work: Work, filler: Filler, identity: dict[str, Any], rows: int | None) -> ShardStore:
    try:
        store = ShardStore.open(out)
    except ValueError as error:
        raise FileExistsError(str(error)) from error
    store.settle()
    if store.verb != work.verb:
        msg = f"{out} holds results of scfm.tl.{store.verb}_store. Choose another name."
        raise FileExistsError(msg)
    was, now = store.identity["source"], identity["source"]
    changed = [(was[number], found) for number, found in enumerate(now[: len(was)]) if found not in store.known(number)]
    if changed or len(was) != len(now):
        first = (changed or [(f"{len(was)} files", len(now))])[0]
        msg = (
            f"{out} was made of a source that was another, or that has changed since: it was {first[0]}, "
            f"now it is {first[1]}. Remove the store or choose another name."
        )
        raise FileExistsError(msg)
    differing = differences(store.identity["parameters"], identity["parameters"])
    if (store.key, store.arrays[0].path) != (filler.key, filler.path):
        differing.append("key_added")
    if rows is not None and min(rows, store.n_obs) != min(store.shard_rows, store.n_obs):
        differing.append("shard_rows")
    if differing:
        msg = f"{out} was made with other parameters ({', '.join(differing)}). Remove it or choose another name."
        raise FileExistsError(msg)
    return store


def _finish(store: ShardStore) -> bool:
    """When nothing is missing any more, add up what the shards counted; says whether that is so."""
    done = store.done()
    if len(done) < len(store.shards):
        return False
    stats = RunStats()
    for marker in done.values():
        for name in COUNTED:
            setattr(stats, name, getattr(stats, name) + marker[name])
    store.set_params(counts_of(stats))
    return True
