"""What has been fetched, and whether it is still what it was."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from contextlib import ExitStack, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from scfm._checks import typed
from scfm._lock import hold
from scfm._paths import size_of
from scfm._settings import settings
from scfm._warn import warn
from scfm.genes.vocabulary import vocabulary_files
from scfm.model._published_folder import WEIGHTS_FILE
from scfm.model.registry import find_card, revised
from scfm.weights.card import CARD_FILE, ModelCard
from scfm.weights.tensors import check_sha256

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__all__ = ["check_cached", "list_cached", "lock_path", "models_folder", "prune_cache", "verify_cached"]

logger = logging.getLogger("scfm")


@typed
def list_cached() -> pd.DataFrame:
    """List the models in ``scfm.settings.cache_dir``.

    Returns
    -------
    A table with the model id as index and the columns family, revision, bytes, weights_sha256, path.

    Examples
    --------
    >>> import scfm
    >>> list(scfm.model.list_cached().columns)
    ['family', 'revision', 'bytes', 'weights_sha256', 'path']
    """
    import pandas as pd

    rows = []
    for folder in _folders():
        card = ModelCard.read(folder)
        rows.append((folder.name, card.family, card.revision, size_of(folder), card.weights_sha256, str(folder)))
    columns = ["id", "family", "revision", "bytes", "weights_sha256", "path"]
    return pd.DataFrame(rows, columns=columns).set_index("id")


@typed
def verify_cached() -> list[str]:
    """Compare all files of the cached models with their hashes, and the cards of registered models with what is known.

    Returns
    -------
    Ids of the models that are whole.

    Raises
    ------
    ValueError
        If one is not; the message names all of them.
    """
    whole, damaged = [], []
    for folder in _folders():
        try:
            check_cached(folder)
            card = ModelCard.read(folder)
            check_sha256(card.weights_sha256, folder / WEIGHTS_FILE)
            check_sha256(card.vocabulary_sha256, *vocabulary_files(folder))
            whole.append(folder.name)
        except (ValueError, OSError) as error:
            damaged.append(f"{folder}: {error}")
    if damaged:
        msg = "Damaged models; remove their folders, and they are fetched again when they are used.\n" + "\n".join(
            damaged
        )
        raise ValueError(msg)
    return whole


@typed
def prune_cache(*models: str) -> int:
    """Remove leftovers of downloads and killed processes, and the models that are named.

    Files that another process is fetching or converting are kept.

    Parameters
    ----------
    models
        Ids as in :func:`list_cached`; none by default.

    Returns
    -------
    Bytes that were removed.

    Raises
    ------
    ValueError
        If a model is not in the cache; nothing is removed then.
    BlockingIOError
        If another process is fetching or converting one that is named; nothing is removed then.
    """
    known = {path.name: path for path in sorted(models_folder().glob("[!.]*")) if path.is_dir()}
    unknown = [name for name in models if name not in known]
    if unknown:
        msg = f"{', '.join(unknown)} is not in {settings.cache_dir}; there is {', '.join(known) or 'nothing'}."
        raise ValueError(msg)
    with ExitStack() as stack:
        locks = {*models_folder().glob(".*.lock"), *(lock_path(known[name]) for name in models)}
        busy = [lock.name[1 : -len(".lock")] for lock in sorted(locks) if not _taken(lock, stack)]
        if set(busy) & set(models):
            msg = f"{', '.join(busy)} is being fetched or converted by another process; wait until it is done."
            raise BlockingIOError(msg)
        doomed = [known[name] for name in models]
        if busy:
            logger.warning(
                "%s is being fetched or converted by another process; incomplete files are kept.", ", ".join(busy)
            )
        else:
            doomed += [path for path in models_folder().glob(".*") if path.is_dir()]
            doomed += _fetched(stack)
        removed = sum(size_of(path) for path in doomed)
        for path in doomed:
            _remove(path)
    downloads = settings.cache_dir / "downloads"
    for folder in (*sorted((path for path in downloads.rglob("*") if path.is_dir()), reverse=True), downloads):
        with suppress(OSError):  # unless something is left in it
            folder.rmdir()
    return removed


def check_cached(folder: Path, card: ModelCard | None = None) -> None:
    """Check that a folder in the cache holds the registered model of its name; folders elsewhere are not checked.

    Parameters
    ----------
    folder
        The folder.
    card
        Card of the model; by default that in the folder, if there is one.

    Raises
    ------
    ValueError
        If family, revision, sizes, special tokens or a hash differ from those of the registered card.
    """
    if folder.absolute().parent != models_folder() or (card is None and not (folder / CARD_FILE).exists()):
        return
    _warn_if_open(settings.cache_dir)
    name, _, revision = folder.name.partition("@")
    known = find_card(name)
    if known is None or known.id != name:
        return
    expected, found = _facts(revised(known, revision.replace("@", "/") or None)), _facts(card or ModelCard.read(folder))
    wrong = [name for name, value in expected.items() if value is not None and found.get(name) != value]
    if wrong:
        msg = (
            f"{folder} does not hold {folder.name}: its card says {wrong[0]}={found.get(wrong[0])!r}, expected "
            f"{expected[wrong[0]]!r}. It was put there by hand, or by another version of scfm. "
            f"scfm.model.prune_cache({folder.name!r}) removes it, and it is fetched again when it is used; a model of your "
            "own is given by the path of its folder."
        )
        raise ValueError(msg)


def _facts(card: ModelCard) -> dict[str, Any]:
    """What a card in the cache shares with the registered card, as far as that is complete."""
    facts: dict[str, Any] = {name: getattr(card, name) for name in ("id", "family", "revision", "source_sha256")}
    for name in ("architecture", "special_tokens"):
        facts |= {f"{name}[{key!r}]": value for key, value in getattr(card, name).items()}
    if card.source_file.endswith(".safetensors"):  # which are copied as they are
        facts["weights_sha256"] = card.weights_sha256 or card.source_sha256
    return facts


@cache
def _warn_if_open(folder: Path) -> None:
    """Warn once that other users can change what is loaded by name."""
    if os.name == "posix" and any(
        path.is_dir() and path.stat().st_mode & stat.S_IWOTH for path in (folder, folder / "models")
    ):
        warn(
            f"All users of this machine can change the models in {folder}: remove that permission "
            f"(chmod -R o-w {folder}), or set SCFM_CACHE_DIR to a folder of your own."
        )


def models_folder() -> Path:
    """Folder of the converted models in the cache."""
    return settings.cache_dir.absolute() / "models"


def lock_path(folder: Path) -> Path:
    """File to lock while a model is written into the cache."""
    return folder.parent / f".{folder.name}.lock"


def _taken(lock: Path, stack: ExitStack) -> bool:
    """Take a lock until the stack is closed; false if another process holds it."""
    try:
        stack.enter_context(hold(lock, wait=0))
    except TimeoutError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif os.name == "posix" or path.suffix != ".lock":  # which Windows removes when it is released
        path.unlink(missing_ok=True)


def _fetched(stack: ExitStack) -> list[Path]:
    """Downloaded and partial files, except those that another process is fetching."""
    files = [path for path in (settings.cache_dir / "downloads").rglob("*") if not path.is_dir()]
    running = [str(lock.with_suffix("")) for lock in files if lock.suffix == ".lock" and not _taken(lock, stack)]
    return [path for path in files if not str(path).startswith(tuple(running))]


def _folders() -> list[Path]:
    found = models_folder().glob(f"*/{CARD_FILE}")
    return sorted(path.parent for path in found if not path.parent.name.startswith("."))
