"""Files of the Hugging Face hub by its own client: with the user's login, in the cache that all its tools share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from scfm._paths import atomic, link_or_copy
from scfm.weights.partial import on_disk, part_of
from scfm.weights.tensors import sha256

if TYPE_CHECKING:
    from scfm.weights.transport import HubPlace, RemoteFile

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
    cached = None if remote.sha256 is None else _cached(remote.hub)
    if cached is None and not offline and not part_of(target).exists():
        cached = _fetched(remote.hub, remote.url, progress)
    found = None if cached is None else sha256(cached)
    if cached is None or remote.sha256 not in (None, found):
        return None
    with on_disk(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as work:
            link_or_copy(cached, work)
    return found


def _cached(hub: HubPlace) -> Path | None:
    """A file that any tool has fetched before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub.repository, hub.path, revision=hub.revision)
    return Path(found) if isinstance(found, str) else None


def _fetched(hub: HubPlace, url: str, progress: bool | None) -> Path | None:
    """The file in the cache, once the client of the hub has fetched it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    token = None if url.startswith("https:") else False  # `None`: that of the user
    shown = not are_progress_bars_disabled()
    try:
        if progress is False:
            disable_progress_bars()
        if get_hf_file_metadata(url, token=token).commit_hash is None:
            return None
        found = hf_hub_download(hub.repository, hub.path, revision=hub.revision, endpoint=hub.endpoint, token=token)
        return Path(found)
    except Exception as error:  # noqa: BLE001  (any of its HTTP library; without it the file is asked for once more)
        logger.info("%s: huggingface_hub gave up (%s); asking without it.", hub.path, type(error).__name__)
        return None
    finally:
        if shown:
            enable_progress_bars()
