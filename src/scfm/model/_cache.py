"""What has been fetched, and whether it is still what it was."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from scfm._checks import typed
from scfm._settings import settings
from scfm.genes.vocabulary import vocabulary_files
from scfm.model._published_folder import WEIGHTS_FILE
from scfm.weights.card import CARD_FILE, ModelCard
from scfm.weights.tensors import check_sha256

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__all__ = ["list_cached", "prune_cache", "verify_cached"]


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
        rows.append((folder.name, card.family, card.revision, _size(folder), card.weights_sha256, str(folder)))
    columns = ["id", "family", "revision", "bytes", "weights_sha256", "path"]
    return pd.DataFrame(rows, columns=columns).set_index("id")


@typed
def verify_cached() -> list[str]:
    """Compare all files of the cached models with their hashes.

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
    """Remove what downloads have left behind, and the models that are named.

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
    """
    known = {folder.name: folder for folder in _folders()}
    unknown = [name for name in models if name not in known]
    if unknown:
        msg = f"{', '.join(unknown)} is not in {settings.cache_dir}; there is {', '.join(known) or 'nothing'}."
        raise ValueError(msg)
    doomed = [path for path in (settings.cache_dir / "downloads", *(known[name] for name in models)) if path.is_dir()]
    removed = sum(_size(path) for path in doomed)
    for path in doomed:
        shutil.rmtree(path)
    return removed


def _folders() -> list[Path]:
    return sorted(path.parent for path in (settings.cache_dir / "models").glob(f"*/{CARD_FILE}"))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
