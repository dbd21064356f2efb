"""Commands about models and their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["cache", "fetch", "models"]


def models() -> None:
    """List models."""
    from scfm.model.registry import list_models

    columns = ["family", "parameters", "layers", "features", "max_tokens", "pooling", "license"]
    print(list_models()[columns].to_string())


def fetch(
    verb: Callable[..., Path], models: list[str] | None = None, dataset: list[str] | None = None, **arguments: Any
) -> None:
    """Fetch weights and corpora.

    Parameters
    ----------
    models
        Names of models, which `scfm models` lists; all: every one of them; all-embeddings: the gene vectors of 24 species
        that come with TranscriptFormer.
    dataset
        Names of corpora of tokenised cells, as sccello-celltype-1 or genecorpus-30m.
    """
    from scfm.datasets import tokenized
    from scfm.model import fetch_gene_vectors, list_models

    if not (models or dataset):
        msg = "Name the models to fetch, which `scfm models` lists, or corpora with --dataset."
        raise ValueError(msg)
    for name in dataset or ():
        print(*tokenized(name, **arguments), sep="\n")
    for name in models or ():
        if name.replace("_", "-") == "all-embeddings":
            print(fetch_gene_vectors())
            continue
        for model in list_models().index if name == "all" else [name]:
            print(verb(model, **arguments))


def cache(action: Literal["list", "verify", "prune"] = "list", models: list[str] | None = None) -> None:
    """Look after what has been fetched.

    Parameters
    ----------
    action
        list; verify: compare all hashes; prune: remove what downloads left behind, and the models that are named.
    models
        With prune: names of models to remove.
    """
    from scfm.model import list_cached, prune_cache, verify_cached

    if models and action != "prune":
        msg = f"`scfm cache {action}` takes no names of models; `scfm cache prune` removes those that are named."
        raise ValueError(msg)
    if action == "prune":
        print(f"removed {prune_cache(*models or ()):,} bytes")
    elif action == "verify":
        whole = verify_cached()
        print(f"{len(whole)} models are whole: {', '.join(whole) or 'none there'}")
    else:
        found = list_cached()
        print(found[["family", "revision", "bytes", "path"]].to_string() if len(found) else "no models")
