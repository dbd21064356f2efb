"""Published corpora of tokenised cells by name: fetched once, checked, and from then on local files."""

from __future__ import annotations

import difflib
import json
import logging
import math
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scfm._checks import typed
from scfm._lock import hold
from scfm._paths import atomic, check_room, read_json
from scfm._settings import settings
from scfm.weights.card import check_plain

if TYPE_CHECKING:
    from scfm.weights.download import RemoteFile

__all__ = ["CORPORA", "tokenized"]

logger = logging.getLogger("scfm")

LISTING = "files.json"
"""Sizes and hashes of the files of a corpus, as the hub gave them when they were fetched."""
HELD_OUT, SEED = 0.001, 237
"""Share of scCello's pretraining cells that were held out, and the seed that drew them."""


class Corpus(NamedTuple):
    """Where a corpus is on the hub."""

    repository: str
    files: str
    """Pattern of the files that hold cells."""


CORPORA = {
    "sccello-pretrain": Corpus("katarinayuan/scCello_pretrain_unsplitted", "*.parquet"),
    "sccello-celltype-1": Corpus("katarinayuan/scCello_ood_celltype_data1", "*.parquet"),
    "sccello-celltype-2": Corpus("katarinayuan/scCello_ood_celltype_data2", "*.parquet"),
    "sccello-tissue-1": Corpus("katarinayuan/scCello_ood_tissue_data1", "*.parquet"),
    "sccello-tissue-2": Corpus("katarinayuan/scCello_ood_tissue_data2", "*.parquet"),
    "sccello-donor-1": Corpus("katarinayuan/scCello_ood_donor_data1", "*.parquet"),
    "sccello-donor-2": Corpus("katarinayuan/scCello_ood_donor_data2", "*.parquet"),
    "genecorpus-30m": Corpus("ctheodoris/Genecorpus-30M", "genecorpus_30M_2048.dataset/*"),
}
"""Corpora that models were pretrained on or judged by, by name."""
PARTS = {"sccello-in-distribution": "sccello-pretrain"}
"""Corpora that are drawn from another one."""


@typed
def tokenized(name: str, *, revision: str | None = None) -> list[Path]:
    """Fetch a published corpus of tokenised cells, unless it is on this machine.

    The size is logged before the download starts. Files are downloaded like those of models: resumed after interruptions,
    through the shared cache of ``huggingface_hub``, and compared with the hashes that the hub gives. They are read block
    by block, so a corpus may exceed memory: pass the result to :func:`scfm.tl.embed_tokenized` or
    :func:`scfm.tl.embed_store`.

    Parameters
    ----------
    name
        - ``"sccello-pretrain"``: the 22 million cells of scCello's pretraining;
        - ``"sccello-in-distribution"``: the 0.1 % of them on which scCello is evaluated, in the same order: the test part of
          ``train_test_split(test_size=0.001, seed=237)`` of Hugging Face ``datasets``;
        - ``"sccello-celltype-1"``, ``"sccello-celltype-2"``, ``"sccello-tissue-1"``, ``"sccello-tissue-2"``,
          ``"sccello-donor-1"``, ``"sccello-donor-2"``: cells of types, tissues or donors that scCello has not seen;
        - ``"genecorpus-30m"``: the cells of Geneformer V1's pretraining.
    revision
        Commit, branch or tag of the repository; by default what its main branch was when the corpus was first fetched.

    Returns
    -------
    The files, or the folder of the dataset for one that ``save_to_disk`` wrote, in
    ``scfm.settings.cache_dir / "datasets"``.

    Raises
    ------
    ImportError
        If pyarrow is not installed (extra ``arrow``), for a corpus that is drawn from another one.
    ValueError
        If the name is not known, the revision cannot be one, or a file is not what the hub says.
    FileNotFoundError
        If the corpus is not on this machine and ``scfm.settings.offline`` is set, or the hub has no such files.
    OSError
        If the network, the server or the disk fails for good, or the disk has no room for it.

    Examples
    --------
    >>> import scfm
    >>> cells = scfm.datasets.tokenized("sccello-celltype-1")  # doctest: +SKIP
    >>> adata = scfm.tl.embed_tokenized(cells, "sccello-zeroshot")  # doctest: +SKIP
    """
    whole = PARTS.get(name, name)
    if whole not in CORPORA:
        close = difflib.get_close_matches(name, [*CORPORA, *PARTS], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        msg = f"{name!r} is not a published corpus.{hint} Known are {', '.join(sorted([*CORPORA, *PARTS]))}."
        raise ValueError(msg)
    files = _fetch(whole, revision)
    return files if whole == name else [_held_out(files, _folder(whole, revision) / f"{name}.parquet")]


def _folder(name: str, revision: str | None) -> Path:
    """Where a corpus is kept."""
    if revision is not None:
        check_plain("revision", revision)
        name = f"{name}@{revision.replace('/', '@')}"
    return settings.cache_dir / "datasets" / name


def _fetch(name: str, revision: str | None) -> list[Path]:
    """Download what is missing of a corpus."""
    from scfm.weights.download import download

    folder = _folder(name, revision)
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder.with_name(f".{folder.name}.lock")):
        listing = _listing(name, revision, folder / LISTING)
        sizes = {path: what["bytes"] for path, what in listing["files"].items()}
        missing = {path: size for path, size in sizes.items() if not _is_whole(folder / path, size)}
        check_room(folder, sum(missing.values()))
        for path in missing:
            download(_remote(listing, path), folder / path, offline=settings.offline, progress=settings.progress)
    paths = [folder / path for path in listing["files"]]
    return [paths[0].parent] if any(path.name == "state.json" for path in paths) else paths


def _listing(name: str, revision: str | None, path: Path) -> dict[str, Any]:
    """Commit, and sizes and hashes of the files of a corpus: as they were found at first."""
    if path.is_file():
        return read_json(path)
    corpus = CORPORA[name]
    if settings.offline:
        msg = (
            f"{name} is not on this machine (looked in {path.parent}), and scfm is offline (SCFM_OFFLINE, HF_HUB_OFFLINE). "
            f"Fetch it once with a network: scfm.datasets.tokenized({name!r})."
        )
        raise FileNotFoundError(msg)
    commit, kept = _on_hub(corpus.repository, revision, corpus.files)
    n_bytes = sum(what["bytes"] for what in kept.values())
    logger.info("%s: %d files, %.1f GB, go to %s", name, len(kept), n_bytes / 1e9, path.parent)
    with atomic(path) as work:
        work.write_text(json.dumps({"repository": corpus.repository, "commit": commit, "files": kept}, indent=2))
    return read_json(path)


def _on_hub(repository: str, revision: str | None, pattern: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Commit of a dataset on the hub, and size and hash of its files that a pattern fits."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=settings.hub_endpoint.rstrip("/"))
    try:
        found = api.dataset_info(repository, revision=revision, files_metadata=True)
    except Exception as error:  # the HTTP library depends on the release
        reason = str(error).partition("\n")[0]
        msg = f"{settings.hub_endpoint} does not list the files of the dataset {repository}: {reason}. Try again later."
        raise OSError(msg) from error
    files = {}
    for file in found.siblings or ():
        if not PurePosixPath(file.rfilename).match(pattern):
            continue
        check_plain("source_file", file.rfilename)
        files[file.rfilename] = {"bytes": int(file.size or 0), "sha256": None if file.lfs is None else file.lfs.sha256}
    if not files:
        msg = f"The dataset {repository} on {settings.hub_endpoint} has no files {pattern}."
        raise FileNotFoundError(msg)
    check_plain("revision", str(found.sha))
    return str(found.sha), dict(sorted(files.items()))


def _remote(listing: dict[str, Any], path: str) -> RemoteFile:
    from scfm.weights.transport import HubPlace, hub_file

    endpoint = settings.hub_endpoint.rstrip("/")
    place = HubPlace(listing["repository"], listing["commit"], path, endpoint, "dataset")
    return hub_file(place, listing["files"][path]["sha256"])


def _is_whole(path: Path, n_bytes: int) -> bool:
    """Whether a file has its size; its hash was compared when it came."""
    return path.is_file() and path.stat().st_size == n_bytes


def _held_out(files: list[Path], target: Path) -> Path:
    """Write the cells that ``train_test_split`` of ``datasets`` leaves for the test, in its order."""
    from scfm.read import arrow

    pa = arrow()
    with hold(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            cells = pa.dataset.dataset([str(file) for file in files])
            n_cells = cells.count_rows()
            order = np.random.default_rng(SEED).permutation(n_cells)
            with atomic(target) as work:
                pa.parquet.write_table(cells.take(order[: math.ceil(HELD_OUT * n_cells)]), work)
    return target
