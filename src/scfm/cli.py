"""The command ``scfm``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_NOT_ON_THE_COMMAND_LINE = {"data", "model", "device", "dtype", "copy", "options"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 an error (told in one line), 2 a wrong call."""
    parser, commands = _parser()
    chosen = parser.parse_args(arguments)
    try:
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


def _parser() -> tuple[ArgumentParser, dict[str, Any]]:
    import scfm

    parser = ArgumentParser(
        prog="scfm", description="Run single-cell foundation models on AnnData files.", version=scfm.__version__
    )
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    subcommands = parser.add_subcommands()
    embed = ArgumentParser(description="Embed the cells of a file and write a copy of it with the embedding.")
    embed.add_argument("source", type=Path, help="an .h5ad, .h5mu or .zarr file; read block by block")
    embed.add_argument("--model", type=str, required=True, help="id, alias, or folder; `scfm models` lists the ids")
    embed.add_argument("--out", type=Path, required=True, help="file to write, with the suffix of the source")
    embed.add_argument("--overwrite", action="store_true", help="replace OUT if it exists; it may be the source")
    embed.add_argument("--device", type=str | None, default=None, help="cpu, cuda, cuda:1, mps; default: the fastest")
    embed.add_argument("--dtype", type=str | None, default=None, help="float32, bfloat16 or float16")
    embed.add_function_arguments(scfm.tl.embed, skip=set(_NOT_ON_THE_COMMAND_LINE))
    subcommands.add_subcommand("embed", embed)
    models = ArgumentParser(description="List the models that are known by name.")
    subcommands.add_subcommand("models", models)
    convert = ArgumentParser(description="Convert published weights into one folder without pickles.")
    convert.add_argument("source", type=Path, help="folder of published weights")
    convert.add_argument("out", type=Path, help="folder to write")
    convert.add_function_arguments(scfm.model.convert, skip={"source", "out"})
    subcommands.add_subcommand("convert", convert)
    return parser, {"embed": _embed, "models": _models, "convert": _convert}


def _embed(arguments: Namespace) -> None:
    import scfm
    from scfm._files import check_output, write_with_embedding
    from scfm._keys import result_keys

    values = vars(arguments)
    source, out, name = values.pop("source"), values.pop("out"), values.pop("model")
    overwrite, key_added = values.pop("overwrite"), values.pop("key_added")
    _log_progress()
    check_output(source, out, overwrite=overwrite)
    model = scfm.model.load(name)
    keys = result_keys(model.family, key_added)
    embedding = model.run(source, **values)
    write_with_embedding(source, out, embedding, keys, values["modality"])
    print(f"wrote {out} with {embedding.axis}m[{keys.obsm!r}] {embedding.values.shape} and uns[{keys.uns!r}]")


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
