"""``scfm embed``."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from jsonargparse import SUPPRESS, ArgumentParser

from scfm.cli._common import log_progress
from scfm.cli.stores import progress
from scfm.read import is_tokenized

if TYPE_CHECKING:
    from collections.abc import Iterator


__all__ = ["commands", "family_options"]

_WITH_STORE = ("shard", "shard_rows", "into_source", "scheduler", "local_cluster")
_NOT_ON_THE_COMMAND_LINE = {"data", "model", "device", "dtype", "copy", "options"}


def commands() -> dict[str, tuple[ArgumentParser, Any]]:
    """Parser and function of each command."""
    return {"embed": (_embed_parser(), _embed)}


def _embed_parser() -> ArgumentParser:
    import scfm

    embed = ArgumentParser(description="Embed the cells of a file and write a copy of it with the embedding.")
    embed.add_argument(
        "source",
        type=str,
        help="an .h5ad, .h5mu or .zarr file, read block by block; with --store also a pattern or an address",
    )
    embed.add_argument("--model", type=str, required=True, help="id, alias, or folder; `scfm models` lists the ids")
    embed.add_argument("--family", type=str | None, default=None, help="family of the weights, where it is not clear")
    embed.add_argument("--out", type=Path, required=True, help="file to write, with the suffix of the source")
    embed.add_argument("--overwrite", action="store_true", help="replace OUT if it exists; it may be the source")
    embed.add_argument(
        "--device",
        type=str | None,
        default=None,
        help="cpu, cuda, cuda:1, mps, or several as cuda:0,cuda:1; default: the fastest",
    )
    embed.add_argument("--dtype", type=str | None, default=None, help="float32, bfloat16 or float16")
    embed.add_argument(
        "--emb_type",
        type=Literal["cell", "cge"],
        default="cell",
        help="cge: write the state of every gene in every cell to the folder OUT instead (scfm.tl.gene_embeddings)",
    )
    embed.add_argument(
        "--store", action="store_true", help="OUT is a zarr store that is filled shard by shard; resumes"
    )
    embed.add_argument(
        "--shard", type=str | None, default=None, help="with --store: part of the work, as 3/16, or auto"
    )
    embed.add_argument("--shard_rows", type=int | None, default=None, help="with --store: cells of a shard")
    embed.add_argument("--scheduler", type=str | None, default=None, help="with --store: address of a dask scheduler")
    embed.add_argument(
        "--local_cluster", type=int | None, default=None, help="with --store: start a dask cluster of as many processes"
    )
    embed.add_argument("--into_source", action="store_true", help="with --store: add the result to SOURCE at the end")
    embed.add_function_arguments(scfm.tl.embed, skip=set(_NOT_ON_THE_COMMAND_LINE))
    for name, (kind, text) in family_options().items():
        embed.add_argument(f"--{name}", type=kind, default=SUPPRESS, help=text)
    return embed


def family_options(*, scored: bool = False) -> dict[str, tuple[Any, str]]:
    """Type and help of every option that a family has (``scored``: one with likelihoods); others keep their default."""
    from docstring_parser import parse_from_object

    from scfm.model.registry import families

    found: dict[str, tuple[Any, str]] = {}
    for cls in [cls for cls in families().values() if cls.implements("scorer") or not scored]:
        types = get_type_hints(cls.options_class)
        texts = {param.arg_name: param.description or "" for param in parse_from_object(cls.options_class).params}
        owners = ", ".join(
            sorted(name for name, other in families().items() if other.options_class is cls.options_class)
        )
        for field in fields(cls.options_class):
            text = " ".join(texts.get(field.name, "").split()).replace("``", "")
            found[field.name] = types[field.name], f"{text} (default: {field.default}; {owners})".replace("%", "%%")
    return found


def _embed(
    source: str,
    model: str,
    out: Path,
    *,
    family: str | None,
    emb_type: Literal["cell", "cge"],
    store: bool,
    shard: str | None,
    shard_rows: int | None,
    into_source: bool,
    scheduler: str | None,
    local_cluster: int | None,
    overwrite: bool,
    device: str | None,
    **keywords: Any,
) -> None:
    """Decide which of four things the command is asked for; ``keywords`` are those of :func:`scfm.tl.embed`."""
    import scfm

    log_progress()
    keywords["device"] = device.split(",") if device is not None and "," in device else device
    if store:
        del keywords["groupby"]
        with _resumable(out), _client(scheduler, local_cluster) as client:
            loaded = model if client is not None and family is None else scfm.model.load(model, family=family)
            scfm.tl.embed_store(
                source,
                loaded,
                out,
                shard=shard,
                shard_rows=shard_rows,
                into_source=into_source,
                client=client,
                **keywords,
            )
        print(progress(out))
        return
    for name, value in zip(_WITH_STORE, (shard, shard_rows, into_source, scheduler, local_cluster), strict=True):
        if value:
            msg = f"--{name} goes with --store."
            raise ValueError(msg)
    if emb_type == "cge":
        _embed_genes(source, model, family, out, overwrite=overwrite, **keywords)
    elif is_tokenized(source):
        _embed_tokenized(source, model, family, out, overwrite=overwrite, **keywords)
    else:
        _embed_cells(Path(source), model, family, out, overwrite=overwrite, **keywords)


def _embed_cells(
    source: Path,
    model: str,
    family: str | None,
    out: Path,
    *,
    overwrite: bool,
    key_added: str | None,
    groupby: str | None,
    **keywords: Any,
) -> None:
    import scfm
    from scfm._files import check_output, write_with_embedding
    from scfm._keys import result_keys
    from scfm.model.arguments import Arguments

    arguments = Arguments.of(keywords)
    check_output(source, out, overwrite=overwrite)
    loaded = scfm.model.load(model, family=family)
    keys = result_keys(loaded.family, key_added)
    embedding = loaded.run(source, arguments, groupby=groupby)
    write_with_embedding(source, out, embedding, keys, arguments.modality)
    print(f"wrote {out} with {embedding.axis}m[{keys.obsm!r}] {embedding.values.shape} and uns[{keys.uns!r}]")


def _embed_genes(source: str, model: str, family: str | None, out: Path, *, overwrite: bool, **keywords: Any) -> None:
    import scfm

    for name in ("pooling", "groupby", "key_added"):
        if keywords.pop(name) is not None:
            msg = f"--{name} does not go with --emb_type cge, which writes every gene of every cell."
            raise ValueError(msg)
    loaded = scfm.model.load(model, family=family)
    print(f"wrote {scfm.tl.gene_embeddings(source, loaded, out=out, overwrite=overwrite, **keywords)}")


def _embed_tokenized(
    source: str, model: str, family: str | None, out: Path, *, overwrite: bool, **keywords: Any
) -> None:
    import scfm
    from scfm._paths import atomic, check_new

    if out.suffix != ".h5ad":
        msg = f"A tokenised dataset becomes an .h5ad file with its annotation and the embedding; OUT is {out}."
        raise ValueError(msg)
    check_new(out, overwrite=overwrite, hint="pass --overwrite")
    taken = signature(scfm.tl.embed_tokenized).parameters
    unused = [name for name, value in keywords.items() if name not in taken and value is not None]
    if unused:
        msg = f"--{unused[0]} chooses among counts, and {source} is tokenised already."
        raise ValueError(msg)
    loaded = scfm.model.load(model, family=family)
    given = {name: value for name, value in keywords.items() if name in taken}
    adata = scfm.tl.embed_tokenized(source, loaded, **given)
    with atomic(out) as work:
        adata.write_h5ad(work)
    print(f"wrote {out} with obsm[{next(iter(adata.obsm))!r}] {adata.shape[0]} cells")


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
        msg = "--scheduler and --local_cluster name two different clusters; give one of them."
        raise ValueError(msg)
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        msg = 'A cluster needs dask: pip install "scfm[cluster]".'
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
