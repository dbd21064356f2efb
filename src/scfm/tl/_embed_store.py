"""Embeddings of more cells than fit into memory, into a store on disk."""

from __future__ import annotations

import json
import logging
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._keys import Keys, made_by, result_keys
from scfm._paths import check_new, check_room, check_writable
from scfm._text import masked
from scfm._write import merge_store
from scfm.model import FoundationModel, load
from scfm.model.arguments import Arguments
from scfm.model.session import counts_of
from scfm.read import check_links, expand, is_anndata_file, is_tokenized
from scfm.read.paths import is_url
from scfm.run import RunStats
from scfm.run.device import env_int, local_device
from scfm.run.sinks import ShardSink
from scfm.run.store import CHUNK_ROWS, COUNTED, EmbeddingStore, fingerprint
from scfm.tasks import Embed
from scfm.tl._target import FileTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from distributed import Client

    from scfm._types import Compat
    from scfm.model.arguments import SharedWith
    from scfm.model.session import Session
    from scfm.run.device import Device
    from scfm.run.store import Shard

__all__ = ["embed_store"]

logger = logging.getLogger("scfm")

SHARD_BYTES = 2**25
_RANKS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


@typed
@with_parameters
def embed_store(
    source: str | Path | Sequence[str | Path],
    model: str | Path | FoundationModel,
    out: str | Path,
    *,
    shard: str | None = None,
    shard_rows: int | None = None,
    resume: bool = True,
    into_source: bool = False,
    client: Client | None = None,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    pooling: str | None = None,
    hidden_layer: int | None = None,
    max_tokens: int | None = None,
    device: Device | Sequence[Device] | None = None,
    dtype: str | torch.dtype | None = None,
    compat: Compat | None = None,
    shared_with: SharedWith = None,
    key_added: str | None = None,
    **options: Any,
) -> Path:
    """Embed the cells of one or more files into a zarr store, in memory that does not grow with the number of cells.

    Cells are computed in shards of consecutive rows. A finished shard stays finished: called again with the same
    arguments after an interruption, only the missing shards are computed. Several processes may fill one store, each
    with its own ``shard``.

    Parameters
    ----------
    source
        Path of an ``.h5ad`` or ``.h5mu`` file, a zarr store or a collection of ``annbatch``, or the address of a zarr
        store (``https://…``, ``s3://…``); it is read block by block and not changed. Several files, each with its own
        genes, are given as a list or by a pattern such as ``"atlas/*.h5ad"``.
    %(model)s
    out
        Folder of the store; made if it does not exist.
    shard
        Part of the work to do: ``"3/16"`` is the third of sixteen. ``"auto"`` takes it from the environment of torchrun
        (``RANK``, ``WORLD_SIZE``) or SLURM (``SLURM_PROCID``, ``SLURM_NTASKS``), and the CUDA device from ``LOCAL_RANK``
        or ``SLURM_LOCALID``. By default everything.
    shard_rows
        Cells of a shard, a multiple of 1,024 or less than that; by default as many as give about 32 MiB.
    resume
        Whether to go on with a store that exists; ``False`` makes that an error.
    into_source
        When nothing is missing any more, add the embeddings to ``source``, too (to each file those of its cells). It is
        completed in a copy that takes its place in one step; that needs room for both, except that the copy of a zarr store
        shares its chunks with it. After a stop the same call completes this, too.
    client
        A dask client, whose workers then compute the shards. Each loads the model once; all of them must reach
        ``source``, ``out`` and the model under the same paths. Needs the extra ``cluster``.
    %(matrix)s
    pooling
        As for :func:`scfm.tl.embed`, except ``"gene"``.
    %(hidden_layer)s
    %(max_tokens)s
    %(device)s
    %(dtype)s
    %(compat)s
    %(shared_with)s
    %(key_added)s
    %(options)s

    Returns
    -------
    ``out``. :func:`anndata.read_zarr` opens it: ``obs_names`` as in the source, ``obsm['X_<family>' | key_added]``
    float32 of shape ``(n_obs, n_features)``, NaN in shards that are not finished, and
    ``uns['<family>' | key_added]['params']``. For several files ``obs['file']`` names the file of each cell, and entries
    of ``params`` that differ between them are lists.

    Raises
    ------
    FileExistsError
        If ``out`` is no such store, was made of another or since changed source or with other parameters, or exists
        and ``resume`` is off.
    RuntimeError
        If another process is computing the same shards.
    OSError
        If ``out``, or with ``into_source`` a source, cannot be written, or the disk has no room for what is missing.
    %(errors)s

    Examples
    --------
    >>> import scfm, tempfile, anndata
    >>> folder = tempfile.mkdtemp()
    >>> scfm.datasets.pbmc68k().write_h5ad(f"{folder}/cells.h5ad")
    >>> out = scfm.tl.embed_store(f"{folder}/cells.h5ad", "scfm-mini", f"{folder}/embedding.zarr")
    >>> anndata.read_zarr(out).obsm["X_scfm_mini"].shape
    (700, 128)
    """
    arguments = Arguments(
        modality=modality,
        layer=layer,
        use_raw=use_raw,
        gene_key=gene_key,
        pooling=pooling,
        hidden_layer=hidden_layer,
        max_tokens=max_tokens,
        device=local_device() if shard == "auto" and device is None else device,
        dtype=dtype,
        compat=compat,
        shared_with=shared_with,
        options=options,
    )
    out = Path(out).expanduser()
    paths = _checked_paths(source, out, resume=resume, into_source=into_source)
    name = None if client is None else _name_of(model)
    part = _part(shard)
    if pooling == "gene":
        msg = "pooling='gene' gives one vector per gene, which fits into memory: use scfm.tl.embed."
        raise ValueError(msg)
    loaded = load(model)
    keys = result_keys(loaded.family, key_added)
    with loaded.session(paths, arguments) as session:
        rows = _shard_rows(shard_rows, session.model.n_features)
        description = session.description()
        identity = _identity(paths, session, description)
        for path in paths if into_source else ():
            _check_mergeable(Path(path), keys, session.model.n_features, modality)
        if not out.exists():
            params = made_by("embed") | description
            EmbeddingStore.create(out, keys, session.source, session.model.n_features, rows, identity, params)
        store = _opened(out, identity, keys.obsm, rows if shard_rows is not None else None)
        asked = _share(store.shards, part)
        finished = store.done()
        missing = [shard for shard in asked if shard.number not in finished]
        done = _cells(asked) - _cells(missing)
        logger.info("%d of %d shards of %s are to be computed", len(missing), len(store.shards), store.path)
        check_room(out, 4 * store.n_features * _cells(missing))
        if client is None and missing:
            with ShardSink(store, missing) as sink:
                task = Embed(session.model, session.options, sink)
                session.run(task, [(shard.start, shard.stop) for shard in missing], done)
    if client is not None and name is not None and missing:
        from scfm.tl._cluster import Job, fill_with

        fill_with(client, Job(paths, name, out.absolute(), arguments), missing, done)
    if _finish(store) and into_source:
        for number, path in enumerate(paths):
            merge_store(store, Path(path), modality, number=number)
    return out


def _checked_paths(source: Any, out: Path, *, resume: bool, into_source: bool) -> list[str]:
    if resume and out.is_dir():
        check_writable(out)
    else:
        check_new(out, hint="go on with it by resume=True")
    found = expand(source)
    paths = found if isinstance(found, list) else [found]
    if len(paths) > 1 and is_tokenized(paths):
        msg = f"tl.embed_store takes one tokenised dataset, got {len(paths)} files; pass the folder that holds them."
        raise ValueError(msg)
    for path in paths if into_source else ():
        if is_url(path) or (Path(path).exists() and not is_anndata_file(Path(path))):
            msg = f"into_source=True cannot write to {masked(path)}; use scfm.tl.embed_store without it."
            raise ValueError(msg)
        check_links(Path(path))
    return [str(path) if is_url(path) else str(Path(path).absolute()) for path in paths]


def _check_mergeable(path: Path, keys: Keys, n_features: int, modality: str | None) -> None:
    """Find out before the long work whether embeddings can be added to a file."""
    target = FileTarget(path, path, modality, "embed")
    target.check_free(keys.uns, ("obsm", keys.obsm))
    check_writable(path.resolve().parent)
    if not path.is_dir():  # the copy of a zarr store shares the files of its chunks
        target.check_room(4 * n_features)


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


def _cells(shards: Sequence[Shard]) -> int:
    return sum(shard.stop - shard.start for shard in shards)


def _shard_rows(asked: int | None, n_features: int) -> int:
    if asked is None:
        return max(1, SHARD_BYTES // (4 * n_features * CHUNK_ROWS)) * CHUNK_ROWS
    if asked < 1 or (asked > CHUNK_ROWS and asked % CHUNK_ROWS):
        msg = f"shard_rows={asked} must be a multiple of {CHUNK_ROWS}, or from 1 to {CHUNK_ROWS}."
        raise ValueError(msg)
    return asked


def _identity(paths: Sequence[str], session: Session, description: dict[str, Any]) -> dict[str, Any]:
    """What makes a run the same run: the cells and the parameters, but not the machine and its versions."""
    parameters = {name: value for name, value in description.items() if name not in ("device", "versions", "files")}
    sizes = [file.n_obs for file in session.source.files] or [session.source.n_obs]
    files = [fingerprint(path) | {"n_obs": size} for path, size in zip(paths, sizes, strict=True)]
    found: dict[str, Any] = json.loads(json.dumps({"source": files, "parameters": parameters}, default=str))
    return found


def _opened(out: Path, identity: dict[str, Any], obsm: str, rows: int | None) -> EmbeddingStore:
    try:
        store = EmbeddingStore.open(out)
    except ValueError as error:
        raise FileExistsError(str(error)) from error
    store.settle()
    was, now = store.identity["source"], identity["source"]
    changed = [(was[number], found) for number, found in enumerate(now[: len(was)]) if found not in store.known(number)]
    if changed or len(was) != len(now):
        first = (changed or [(f"{len(was)} files", len(now))])[0]
        msg = (
            f"{out} was made of a source that was another, or that has changed since: it was {first[0]}, "
            f"now it is {first[1]}. Remove the store or choose another name."
        )
        raise FileExistsError(msg)
    old, new = _flat(store.identity["parameters"]), _flat(identity["parameters"])
    differing = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if store.keys.obsm != obsm:
        differing.append("key_added")
    if rows is not None and len(store.shards) and rows < store.n_obs and store.shards[0].stop != rows:
        differing.append("shard_rows")
    if differing:
        pairs = ", ".join(
            f"{name} was {reprlib.repr(old[name])} and is {reprlib.repr(new.get(name))}"
            for name in differing
            if name in old
        )
        msg = (
            f"{out} was made with other parameters ({pairs or ', '.join(differing)}). Remove it or choose another name."
        )
        raise FileExistsError(msg)
    return store


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters, by names such as ``genes.matched``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _finish(store: EmbeddingStore) -> bool:
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
