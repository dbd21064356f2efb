"""``scfm status`` and ``scfm merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from scfm._text import some

__all__ = ["commands", "progress"]


def commands() -> dict[str, tuple[ArgumentParser, Any]]:
    """Parser and function of each command."""
    status = ArgumentParser(description="Say how much of a store of embeddings is done.")
    status.add_argument("store", type=Path, help="folder that `scfm embed --store` fills")
    merge = ArgumentParser(description="Add the embeddings of a complete store to the file of the cells.")
    merge.add_argument("store", type=Path, help="folder that `scfm embed --store` filled")
    merge.add_argument("target", type=Path, help="the .h5ad, .h5mu or .zarr file that was embedded")
    merge.add_argument("--modality", type=str | None, default=None, help="modality of an .h5mu file")
    return {"status": (status, _status), "merge": (merge, _merge)}


def _status(store: Path) -> None:
    print(progress(store))


def progress(path: Path) -> str:
    """How much of a store is done, in a line."""
    from scfm.run.store import EmbeddingStore

    store = EmbeddingStore.open(path)
    missing = store.missing()
    cells = sum(shard.stop - shard.start for shard in missing)
    text = f"{path}: {len(store.shards) - len(missing)} of {len(store.shards)} shards, {store.n_obs - cells:,} of {store.n_obs:,} cells"
    if missing:
        text += f"; missing shards {some((shard.number for shard in missing), 10)}"
    return text


def _merge(store: Path, target: Path, modality: str | None) -> None:
    from scfm._files import merge_store
    from scfm.run.store import EmbeddingStore

    opened = EmbeddingStore.open(store)
    merge_store(opened, target, modality)
    print(f"added obsm[{opened.keys.obsm!r}] and uns[{opened.keys.uns!r}] to {target}")
