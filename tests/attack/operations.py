"""What is stopped in the middle: calls that write, each with what is there before it."""

from __future__ import annotations

import hashlib
import os
import tarfile
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import pytest

import scfm
from scfm._keys import PARAMS
from scfm.run.store import PLAN_FILE, ShardStore
from scfm.testing import write_geneformer
from scfm.tl._checkpoint import RUN_FILE

from ..model.test_fetch import publish
from ..read.foreign import write_loom
from ..weights.server import FileServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

THOROUGH = os.environ.get("TEST_PROFILE") == "thorough"
N_OBS, FETCHED = 20, "geneformer-v1-10m"
HIDDEN = ".scfm-"
"""How names of folders begin in which work goes on."""


class Operation(NamedTuple):
    """A call that writes in a folder."""

    prepare: Callable[[Path], object]
    call: Callable[[Path], object]
    result: str
    """Name of what it writes."""


@cache
def model() -> scfm.model.FoundationModel:
    return scfm.model.load("scfm-mini")


def cells(name: str, folder: Path) -> None:
    """Write counts of real cells, with an embedding and labels."""
    adata, path = scfm.datasets.pbmc68k()[:N_OBS].copy(), folder / name
    adata.obsm["X_own"] = np.random.default_rng(0).normal(size=(N_OBS, 3))
    labels = adata.obs["bulk_labels"].astype(str)
    adata.obs = pd.DataFrame({"label": labels if path.suffix == ".loom" else labels.where(np.arange(N_OBS) % 2 == 0)})
    write = {".h5ad": adata.write_h5ad, ".zarr": adata.write_zarr, ".loom": partial(write_loom, adata=adata)}
    write[path.suffix](path)


def store(name: str, folder: Path, **arguments: Any) -> None:
    scfm.tl.embed_store(folder / name, model(), folder / "s.zarr", shard_rows=10, device="cpu", **arguments)


def embedded(name: str, folder: Path) -> None:
    cells(name, folder)
    store(name, folder)


def embed(name: str, out: str, folder: Path) -> None:
    scfm.tl.embed(folder / name, model(), out=folder / out, overwrite=True, device="cpu")


def annotate(folder: Path) -> None:
    use = {"labels_key": "label", "use_rep": "X_own", "n_neighbors": 3}
    scfm.tl.annotate(folder / "a.h5ad", out=folder / "out.h5ad", overwrite=True, **use)


def gene_embeddings(folder: Path) -> None:
    path, genes = folder / "a.h5ad", ["CD3D", "LYZ"]
    scfm.tl.gene_embeddings(path, model(), genes=genes, out=folder / "out.zarr", overwrite=True, device="cpu")


def checkpointed(verb: str, folder: Path, **arguments: Any) -> None:
    """Add up over blocks of cells, with a checkpoint after each."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SECONDS", "TIMES_LONGER"):
            patch.setattr(f"scfm.tl._checkpoint.{name}", 0)
        patch.setattr(scfm.settings, "block_rows", 10)
        how = {"out": folder / "out.h5ad", "overwrite": True, "checkpoint": folder / "run", "device": "cpu"} | arguments
        getattr(scfm.tl, verb)(folder / "a.h5ad", model(), **how)


def tokenize(out: str, folder: Path) -> None:
    scfm.tl.tokenize(folder / "a.h5ad", model(), folder / out, overwrite=True)


def published(packed: bool, folder: Path) -> None:
    made = write_geneformer(folder / "published", n_genes=100, hidden_size=16, n_layers=2, weights="pytorch_model.bin")
    if packed:
        with tarfile.open(folder / "published.tar.gz", "w:gz") as archive:
            archive.add(made, "published")


def convert(source: str, folder: Path) -> None:
    if not (folder / "out").exists():
        scfm.model.convert(folder / source, folder / "out")


def fetch(folder: Path) -> None:
    """Download from a server in the same process, into a cache of its own."""
    with FileServer() as server, pytest.MonkeyPatch.context() as patch:
        scfm.settings.offline, scfm.settings.cache_dir = False, folder / "cache"
        scfm.settings.hub_endpoint = server.url("")
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
        publish(server, FETCHED, folder / "published", patch)
        scfm.model.fetch(FETCHED)


H5AD, ZARR = partial(cells, "a.h5ad"), partial(cells, "a.zarr")
OPERATIONS = {
    "store": Operation(H5AD, partial(store, "a.h5ad"), "s.zarr"),
    **{
        f"merge into {kind}": Operation(
            partial(embedded, f"a.{kind}"), partial(store, f"a.{kind}", into_source=True), f"a.{kind}"
        )
        for kind in ("h5ad", "zarr")
    },
    **{
        f"into_source, {kind}": Operation(
            partial(cells, f"a.{kind}"), partial(store, f"a.{kind}", into_source=True), f"a.{kind}"
        )
        for kind in ("h5ad", "zarr")
    },
    "embed out=, h5ad": Operation(H5AD, partial(embed, "a.h5ad", "out.h5ad"), "out.h5ad"),
    "embed out=, zarr": Operation(ZARR, partial(embed, "a.zarr", "out.zarr"), "out.zarr"),
    "embed in place, h5ad": Operation(H5AD, partial(embed, "a.h5ad", "a.h5ad"), "a.h5ad"),
    "embed in place, zarr": Operation(ZARR, partial(embed, "a.zarr", "a.zarr"), "a.zarr"),
    "embed loom": Operation(partial(cells, "a.loom"), partial(embed, "a.loom", "out.h5ad"), "out.h5ad"),
    "annotate out=": Operation(H5AD, annotate, "out.h5ad"),
    "gene_embeddings out=": Operation(H5AD, gene_embeddings, "out.zarr"),
    "attention checkpoint=": Operation(H5AD, partial(checkpointed, "attention", genes="LYZ"), "out.h5ad"),
    "predict_genes checkpoint=": Operation(H5AD, partial(checkpointed, "predict_genes", genes="LYZ"), "out.h5ad"),
    "tokenize, folder": Operation(H5AD, partial(tokenize, "out.dataset"), "out.dataset"),
    "tokenize, parquet": Operation(H5AD, partial(tokenize, "out.parquet"), "out.parquet"),
    "convert": Operation(partial(published, False), partial(convert, "published"), "out"),
    "convert tar.gz": Operation(partial(published, True), partial(convert, "published.tar.gz"), "out"),
    "fetch": Operation(lambda folder: None, fetch, f"cache/models/{FETCHED}"),
}


def contents(folder: Path) -> dict[str, str]:
    """A digest of the content of everything in a folder that has its final name."""
    found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(HIDDEN)]
    cache = folder / "cache" / "models"
    found += [path for path in cache.glob("*") if path.is_dir() and not path.name.startswith(".")]
    ours = [path for path in found if path.name not in ("cache", "hub", "published")]
    return {path.relative_to(folder).as_posix(): _digest(path) for path in ours}


def _digest(path: Path) -> str:
    if (path / RUN_FILE).exists():
        return "not yet complete"
    if list(path.glob(f"obsm/*/{PLAN_FILE}")):
        filled = ShardStore.open(path)
        missing = filled.missing() or filled.uns()[PARAMS].get("n_cells") != filled.n_obs
        for number in filled.done():
            filled.values(filled.shards[number])  # which compares their hash
        if missing:
            return "not yet complete"
    if path.suffix == ".h5ad":
        return hashlib.sha256("\n".join(sorted(_entries(path))).encode()).hexdigest()
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    notes = (".shards", ".merged")  # which hold times and locks
    kept = [
        (str(file.relative_to(path)), file.read_bytes())
        for file in files
        if not any(
            part in notes or part.startswith(HIDDEN) and part != PLAN_FILE for part in file.relative_to(path).parts
        )
    ]
    return hashlib.sha256(repr(kept).encode()).hexdigest()


def _entries(path: Path) -> Iterator[str]:
    """All that an HDF5 file holds, as text."""
    found: list[Any] = []
    with h5py.File(path) as file:
        file.visititems(lambda _, item: found.append(item))
        for item in found:
            values = np.asarray(item[()] if getattr(item, "shape", None) is not None else ())  # None: of an empty one
            content = repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes()
            about = sorted((name, np.asarray(value).tolist()) for name, value in item.attrs.items())
            yield f"{item.name} {about} {values.dtype} {values.shape} {hashlib.sha256(content).hexdigest()}"
