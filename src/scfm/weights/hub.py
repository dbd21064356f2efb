"""Files of the Hugging Face hub by its own client: with the user's login, in the cache that all its tools share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from scfm._paths import atomic, link_or_copy
from scfm.weights.partial import on_disk, part_of
from scfm.weights.tensors import sha256

if TYPE_CHECKING:
    from scfm.weights.transport import RemoteFile

__all__ = ["from_hub"]

logger = logging.getLogger("scfm")


def from_hub(remote: RemoteFile, target: Path, *, offline: bool, progress: bool | None) -> str | None:
    """Put a file of the hub at ``target``, as a second name of the one in the cache of ``huggingface_hub``.

    Returns
    -------
    Its sha256, or ``None`` if there is no such file: it is published elsewhere, the endpoint is a plain mirror, the
    client of the hub gave up, or the hash is another. :func:`scfm.weights.download.download` says then what is wrong.
    """
    if remote.hub is None:
        return None
    cached = _cached(remote)
    if cached is None and not offline and not part_of(target).exists():
        cached = _fetched(remote, progress)
    found = None if cached is None else sha256(cached)
    if cached is None or remote.sha256 not in (None, found):
        return None
    with on_disk(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as work:
            link_or_copy(cached, work)
    return found


def _cached(remote: RemoteFile) -> Path | None:
    """A file that any tool has fetched before; what it is must be known."""
    from huggingface_hub import try_to_load_from_cache

    if remote.hub is None or remote.sha256 is None:
        return None
    repository, revision, path, _ = remote.hub
    cached = try_to_load_from_cache(repository, path, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _fetched(remote: RemoteFile, progress: bool | None) -> Path | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if remote.hub is None:
        return None
    repository, revision, path, endpoint = remote.hub
    token = None if remote.url.startswith("https:") else False  # `None`: that of the user
    shown = not are_progress_bars_disabled()
    try:
        if progress is False:
            disable_progress_bars()
        if get_hf_file_metadata(remote.url, token=token).commit_hash is None:
            return None
        return Path(hf_hub_download(repository, path, revision=revision, endpoint=endpoint, token=token))
    except Exception as error:  # noqa: BLE001  (any of the HTTP library; without it the file is asked for once more)
        logger.info("%s: huggingface_hub gave up (%s); asking without it.", path, type(error).__name__)
        return None
    finally:
        if shown:
            enable_progress_bars()
