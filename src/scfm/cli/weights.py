"""``scfm models``, ``fetch``, ``convert``, ``cache`` and ``env``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from scfm.cli._common import log_progress

__all__ = ["commands"]


def commands() -> dict[str, tuple[ArgumentParser, Any]]:
    """Parser and function of each command."""
    import scfm

    models = ArgumentParser(description="List the models that are known by name.")
    fetch = ArgumentParser(description="Download the weights of models, check and convert them.")
    fetch.add_argument("models", type=str, nargs="+", help="ids or aliases; `scfm models` lists the ids")
    fetch.add_function_arguments(scfm.model.fetch, skip={"model"})
    convert = ArgumentParser(description="Convert published weights into one folder without pickles.")
    convert.add_argument("source", type=Path, help="folder (or tar file) of published weights")
    convert.add_argument("out", type=Path, help="folder to write")
    convert.add_argument(
        "--dictionaries", type=str, nargs="+", default=None, help="files of gene tables, or folders that hold them"
    )
    convert.add_function_arguments(scfm.model.convert, skip={"source", "out", "dictionaries"})
    cache = ArgumentParser(description="List, verify or prune what has been fetched.")
    cache.add_argument(
        "action",
        type=Literal["list", "verify", "prune"],
        nargs="?",
        default="list",
        help="list; verify: compare all hashes; prune: remove what downloads left behind, and the models that are named",
    )
    cache.add_argument("models", type=str, nargs="*", help="with prune: ids of models to be removed")
    env = ArgumentParser(description="Show versions, devices and settings, for reports of problems.")
    return {
        "models": (models, _models),
        "fetch": (fetch, _fetch),
        "convert": (convert, _convert),
        "cache": (cache, _cache),
        "env": (env, _env),
    }


def _models() -> None:
    import scfm

    columns = ["family", "parameters", "layers", "features", "max_tokens", "pooling", "license"]
    print(scfm.model.list_models()[columns].to_string())


def _fetch(models: list[str], revision: str | None) -> None:
    import scfm

    log_progress()
    for model in models:
        print(scfm.model.fetch(model, revision=revision))


def _convert(**arguments: Any) -> None:
    import scfm

    print(f"wrote {scfm.model.convert(**arguments)}")


def _cache(action: str, models: list[str]) -> None:
    import scfm

    if models and action != "prune":
        msg = f"`scfm cache {action}` takes no names of models."
        raise ValueError(msg)
    if action == "prune":
        print(f"removed {scfm.model.prune_cache(*models):,} bytes")
    elif action == "verify":
        whole = scfm.model.verify_cached()
        print(f"{len(whole)} models are whole: {', '.join(whole) or 'none there'}")
    else:
        found = scfm.model.list_cached()
        print(found[["family", "revision", "bytes", "path"]].to_string() if len(found) else "no models")


def _env() -> None:
    from scfm.cli._env import environment

    for name, value in environment().items():
        print(f"{name}: {value}")
