"""Weights by name: fetched once, checked, converted, and from then on a local folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from scfm._checks import typed
from scfm._lock import hold
from scfm._paths import atomic, settle
from scfm._settings import settings
from scfm.model._cache import check_cached, lock_path
from scfm.model._convert import convert_known
from scfm.model.registry import card_of, family_class, revised
from scfm.weights.archive import unpack
from scfm.weights.card import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scfm.weights.transport import RemoteFile

__all__ = ["fetch", "fetch_gene_vectors", "fetch_tables", "remote_files"]

logger = logging.getLogger("scfm")

OTHER_NAMES = {"model.safetensors": "pytorch_model.bin"}
"""How the hub calls weights that are not where they were expected."""
GENE_VECTORS = "weights/all_embeddings.tar.gz"
"""Beside the weights of TranscriptFormer: gene vectors of all species."""


@typed
def fetch(model: str, *, revision: str | None = None) -> Path:
    """Download the weights of a model by name, check and convert them, unless that is done already.

    :func:`load` does the same where it is given a name. Files of the Hugging Face hub are downloaded into its
    shared cache, unless they are there already. What is on this machine stays there, whatever the network does.

    Parameters
    ----------
    model
        Id or alias of :func:`scfm.model.list_models`.
    revision
        Another commit, branch or tag of the repository than that of the card; the hashes of its files are not known
        beforehand, and recorded.

    Returns
    -------
    Folder of the converted model, in ``scfm.settings.cache_dir``.

    Raises
    ------
    ValueError
        If the name is not known, the revision is no name of a commit, branch or tag, a hash is wrong, a file is not what it
        should be, or there is another model in its place in the cache.
    FileNotFoundError
        If the weights are not on this machine and ``scfm.settings.offline`` is set, or the address has no such file.
    OSError
        If the network, the server or the disk fails for good.

    Examples
    --------
    >>> import scfm
    >>> scfm.model.fetch("scfm-mini").name  # comes with the package
    'scfm-mini'
    """
    named = card_of(model)
    card = revised(card_of(family_class(named.family).weights_id(named)), revision)
    folder = family_class(card.family).local_folder(card)
    remedy = f"call scfm.model.convert(folder, {str(folder)!r}, dictionaries=...)"
    found = _once(folder, card, lambda files: _fetch(card, files, folder), remedy)
    check_cached(found)
    return found


@typed
def fetch_gene_vectors() -> Path:
    """Download the gene vectors of 24 species that come with TranscriptFormer, unless they are on this machine.

    They serve as ``pretrained_embedding=`` for cells of a species that a checkpoint does not know.

    Returns
    -------
    Folder with a file for each species, as ``mus_musculus_gene.h5``, in ``scfm.settings.cache_dir``.

    Raises
    ------
    ValueError
        If the archive is damaged, or not what it should be.
    FileNotFoundError
        If it is not on this machine and ``scfm.settings.offline`` is set, or the address has no such file.
    OSError
        If the network, the server or the disk fails for good.

    Examples
    --------
    >>> import scfm
    >>> folder = scfm.model.fetch_gene_vectors()  # doctest: +SKIP
    >>> mouse = folder / "mus_musculus_gene.h5"  # doctest: +SKIP
    """
    card = card_of("tf-sapiens").with_(id="all_embeddings", source_file=GENE_VECTORS)
    folder = settings.cache_dir / card.id

    def make(files: Mapping[str, RemoteFile]) -> None:
        _download(card, files)
        archive = _target(card, GENE_VECTORS)
        with atomic(folder) as work:
            unpack(archive, work.with_name("unpacked")).rename(work)
        archive.unlink()

    return _once(folder, card, make, f"unpack it as {folder}")


def _once(folder: Path, card: ModelCard, make: Callable[[Mapping[str, RemoteFile]], None], remedy: str) -> Path:
    """Make a folder of files that are fetched, unless it is there; of several processes one does, and the others wait."""
    settle(folder.parent)
    if folder.is_dir():
        return folder
    files = remote_files(card)
    if settings.offline:
        parts = ", ".join(remote.url for remote in files.values())
        msg = (
            f"{card.id} is not on this machine (looked in {folder}), and scfm is offline (SCFM_OFFLINE, HF_HUB_OFFLINE). "
            f"Fetch it once with a network, or bring {parts} here and {remedy}."
        )
        raise FileNotFoundError(msg)
    _make(folder.parent)
    with hold(lock_path(folder)):
        if not folder.is_dir():
            logger.info("%s is not on this machine yet; it goes to %s", card.id, folder)
            make(files)
    return folder


def remote_files(card: ModelCard) -> dict[str, RemoteFile]:
    """Address and hash of every file that a model is made of, by its path in the repository; the weights come first.

    Raises
    ------
    ValueError
        If the card names no repository.
    """
    from scfm.weights.transport import HubPlace, RemoteFile, hub_file

    if not card.source or not card.source_file:
        msg = f"The card of {card.id} says neither where its weights are nor how the file is called (source, source_file)."
        raise ValueError(msg)
    if "://" in card.source:
        base = settings.s3_endpoint or card.source
        return {card.source_file: RemoteFile(f"{base.rstrip('/')}/{card.source_file}", card.source_sha256)}
    config = str(Path(card.source_file).parent / "config.json")
    hashes = {card.source_file: card.source_sha256, config: None, **card.dictionaries}
    endpoint = settings.hub_endpoint.rstrip("/")
    return {name: hub_file(HubPlace(*_place(card, name), endpoint), sha256) for name, sha256 in hashes.items()}


def _place(card: ModelCard, name: str) -> tuple[str, str | None, str]:
    """Repository, revision and path of a file of a card; ``owner/name@revision:path`` is one of another repository."""
    repository, colon, path = name.rpartition(":")
    if not colon:
        return card.source, card.revision, name
    source, _, revision = repository.partition("@")
    return source, revision, path


def fetch_tables(card: ModelCard) -> list[Path]:
    """Download the gene tables of a model and nothing else; the folders they are in."""
    files = {path: remote for path, remote in remote_files(card).items() if path in card.dictionaries}
    _download(card, files)
    return _folders(card)


def _fetch(card: ModelCard, files: Mapping[str, RemoteFile], folder: Path) -> None:
    """Download all files, convert them, and remove the weights that were downloaded."""
    weights, found = _download_weights(card, dict(files))
    tables = _folders(card)
    source = weights if weights.suffix in (".gz", ".tar", ".tgz") else weights.parent
    convert_known(source, folder, card.family, tables or None, card)
    made = ModelCard.read(folder)
    made.with_(source_sha256=found).write(folder)
    weights.unlink()


def _download_weights(card: ModelCard, files: dict[str, RemoteFile]) -> tuple[Path, str]:
    """Download all files; path and hash of the weights, which may have their other usual name if no hash is known."""
    name = card.source_file
    try:
        found = _download(card, files)
    except FileNotFoundError:
        other = str(Path(name).with_name(OTHER_NAMES.get(Path(name).name, Path(name).name)))
        if other == name or card.source_sha256 is not None or settings.offline:
            raise
        logger.info("%s is not there; trying %s", files[name].url, other)
        del files[name]
        files = remote_files(card.with_(source_file=other)) | files
        name, found = other, _download(card, files)
    return _target(card, name), found[name]


def _target(card: ModelCard, name: str) -> Path:
    """Where a file is downloaded to: by the path that it has in its repository."""
    source, revision, path = _place(card, name)
    folder = source.rpartition("://")[2].replace("/", "--")
    return settings.cache_dir / "downloads" / folder / (revision or "latest").replace("/", "@") / path


def _folders(card: ModelCard) -> list[Path]:
    return sorted({_target(card, path).parent for path in card.dictionaries})


def _download(card: ModelCard, files: Mapping[str, RemoteFile]) -> dict[str, str]:
    """Download files; their hashes by path."""
    from scfm.weights.download import download

    found: dict[str, str] = {}
    for path, remote in files.items():
        target = _target(card, path)
        if not target.exists():
            logger.info("fetching %s", remote.url)
        found[path] = download(remote, target, offline=settings.offline, progress=settings.progress)
    return found


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{folder} cannot be made: {error}. Set SCFM_CACHE_DIR to a folder that can be written."
        raise type(error)(msg) from error
