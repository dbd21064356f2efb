"""The command ``scfm``."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from jsonargparse import SUPPRESS, ArgumentParser, Namespace

from scfm._console import console_bar
from scfm.run.progress import use_bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["main"]

_NOT_ON_THE_COMMAND_LINE = {"data", "model", "device", "dtype", "copy", "options"}
_UPSTREAM: dict[str, tuple[str, dict[str, str]]] = {
    "checkpoint_path": ("model", {}),
    "gene_col_name": ("gene_key", {}),
    "model_type": ("family", {}),
    "precision": ("dtype", {"16-mixed": "bfloat16", "32": "float32"}),
    "use_raw": ("use_raw", {"auto": "null"}),
}
"""Options of ``transcriptformer inference`` under which ours go, too, and values that are called otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 an error (told in one line), 2 a wrong call."""
    parser, commands = _parser()
    chosen = parser.parse_args(_named(sys.argv[1:] if arguments is None else arguments))
    try:
        with _plain_warnings(), use_bar(console_bar):
            commands[chosen.subcommand](chosen[chosen.subcommand])
    except KeyboardInterrupt:
        print("scfm: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if chosen.debug:
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"scfm: {type(error).__name__}: {text}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a warning as one line, without the place in the code."""
    shown, warnings.formatwarning = warnings.formatwarning, lambda message, *_, **__: f"scfm: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = shown


def _parser() -> tuple[ArgumentParser, dict[str, Any]]:
    import scfm

    parser = ArgumentParser(
        prog="scfm", description="Run single-cell foundation models on AnnData files.", version=scfm.__version__
    )
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    subcommands = parser.add_subcommands()
    subcommands.add_subcommand("embed", _embed_parser())
    models = ArgumentParser(description="List the models that are known by name.")
    subcommands.add_subcommand("models", models)
    status = ArgumentParser(description="Say how much of a store of embeddings is done.")
    status.add_argument("store", type=Path, help="folder that `scfm embed --store` fills")
    subcommands.add_subcommand("status", status)
    merge = ArgumentParser(description="Add the embeddings of a complete store to the file of the cells.")
    merge.add_argument("store", type=Path, help="folder that `scfm embed --store` filled")
    merge.add_argument("target", type=Path, help="the .h5ad, .h5mu or .zarr file that was embedded")
    merge.add_argument("--modality", type=str | None, default=None, help="modality of an .h5mu file")
    subcommands.add_subcommand("merge", merge)
    convert = ArgumentParser(description="Convert published weights into one folder without pickles.")
    convert.add_argument("source", type=Path, help="folder (or tar file) of published weights")
    convert.add_argument("out", type=Path, help="folder to write")
    convert.add_function_arguments(scfm.model.convert, skip={"source", "out"})
    subcommands.add_subcommand("convert", convert)
    return parser, {"embed": _embed, "models": _models, "convert": _convert, "status": _status, "merge": _merge}


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
    for name, (kind, text) in _family_options().items():
        embed.add_argument(f"--{name}", type=kind, default=SUPPRESS, help=text)
    return embed


def _family_options() -> dict[str, tuple[Any, str]]:
    """Type and help of every option that a family has; those that are not given keep the family's default."""
    from docstring_parser import parse_from_object

    from scfm.model._registry import families

    found: dict[str, tuple[Any, str]] = {}
    for cls in families().values():
        types = get_type_hints(cls.options_class)
        texts = {param.arg_name: param.description or "" for param in parse_from_object(cls.options_class).params}
        owners = ", ".join(
            sorted(name for name, other in families().items() if other.options_class is cls.options_class)
        )
        for field in fields(cls.options_class):
            text = " ".join(texts.get(field.name, "").split()).replace("``", "")
            found[field.name] = types[field.name], f"{text} (default: {field.default}; {owners})".replace("%", "%%")
    return found


def _named(arguments: Sequence[str]) -> list[str]:
    """Write options as the parser knows them: dashes as underscores, and upstream's names and values as ours."""
    given, known = list(arguments), list[str]()
    while given:
        word = given.pop(0)
        if word == "--":
            return [*known, word, *given]
        if not word.startswith("--"):
            known.append("null" if word == "None" else word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        renamed, values = _UPSTREAM.get(name, (name, {}))
        if values and not equals and given:
            value, equals = given.pop(0), "="
        value = "null" if value == "None" else values.get(value, value)
        known.append(f"--{renamed}{equals}{value}")
    return known


def _embed(arguments: Namespace) -> None:
    import scfm
    from scfm._files import check_output, write_with_embedding
    from scfm._keys import result_keys

    values = vars(arguments)
    source, out, name = values.pop("source"), values.pop("out"), values.pop("model")
    overwrite, key_added, kind = values.pop("overwrite"), values.pop("key_added"), values.pop("emb_type")
    family, whole = values.pop("family"), values.pop("store")
    sharding = {name: values.pop(name) for name in ("shard", "shard_rows", "into_source")}
    cluster = {name: values.pop(name) for name in ("scheduler", "local_cluster")}
    if values["device"] is not None and "," in values["device"]:
        values["device"] = values["device"].split(",")
    _log_progress()
    if whole:
        del values["groupby"]
        try:
            with _client(**cluster) as client:
                model = name if client is not None and family is None else scfm.model.load(name, family=family)
                scfm.tl.embed_store(source, model, out, client=client, key_added=key_added, **sharding, **values)
        except KeyboardInterrupt:
            if out.exists():
                print(f"{_progress(out)}. The same command goes on with it.", file=sys.stderr)
            raise
        print(_progress(out))
        return
    given = [name for name, value in {**sharding, **cluster}.items() if value]
    if given:
        msg = f"--{given[0]} goes with --store."
        raise ValueError(msg)
    if kind == "cge":
        unused = [name for name in ("pooling", "groupby") if values.pop(name) is not None]
        unused += ["key_added"] * (key_added is not None)
        if unused:
            msg = f"--{unused[0]} does not go with --emb_type cge, which writes every gene of every cell."
            raise ValueError(msg)
        model = scfm.model.load(name, family=family)
        print(f"wrote {scfm.tl.gene_embeddings(source, model, out=out, overwrite=overwrite, **values)}")
        return
    source = Path(source)
    check_output(source, out, overwrite=overwrite)
    model = scfm.model.load(name, family=family)
    keys = result_keys(model.family, key_added)
    embedding = model.run(source, **values)
    write_with_embedding(source, out, embedding, keys, values["modality"])
    print(f"wrote {out} with {embedding.axis}m[{keys.obsm!r}] {embedding.values.shape} and uns[{keys.uns!r}]")


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


def _status(arguments: Namespace) -> None:
    print(_progress(arguments.store))


def _progress(path: Path) -> str:
    from scfm.run.store import EmbeddingStore

    store = EmbeddingStore.open(path)
    missing = store.missing()
    cells = sum(shard.stop - shard.start for shard in missing)
    text = f"{path}: {len(store.shards) - len(missing)} of {len(store.shards)} shards, {store.n_obs - cells:,} of {store.n_obs:,} cells"
    if missing:
        text += (
            f"; missing shards {', '.join(str(shard.number) for shard in missing[:10])}{' ...' * (len(missing) > 10)}"
        )
    return text


def _merge(arguments: Namespace) -> None:
    from scfm._files import merge_store
    from scfm.run.store import EmbeddingStore

    store = EmbeddingStore.open(arguments.store)
    merge_store(store, arguments.target, arguments.modality)
    print(f"added obsm[{store.keys.obsm!r}] and uns[{store.keys.uns!r}] to {arguments.target}")


def _models(arguments: Namespace) -> None:
    import scfm

    columns = ["family", "parameters", "layers", "features", "max_tokens", "pooling", "license"]
    print(scfm.model.list_models()[columns].to_string())


def _convert(arguments: Namespace) -> None:
    import scfm

    print(f"wrote {scfm.model.convert(**vars(arguments))}")


def _log_progress() -> None:
    """Say on stderr what is done, unless the environment asks for less or more."""
    import os

    from scfm._settings import settings

    settings.verbosity = settings.verbosity if "SCFM_VERBOSITY" in os.environ else "info"
