"""Download files of the Hugging Face hub by ``huggingface_hub``, with the user's login and into the shared cache."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfm._paths import atomic, link_or_copy
from scfm.weights.partial import disk_errors, partial_path
from scfm.weights.tensors import sha256

if TYPE_CHECKING:
    from scfm.weights.transport import HubPlace, RemoteFile

__all__ = ["from_hub"]

logger = logging.getLogger("scfm")

NAME = re.compile(r"[\w-]{1,200}", re.ASCII)
"""Versions and hashes by which the cache of ``huggingface_hub`` names files, and which a mirror could lead out of it."""


def from_hub(remote: RemoteFile, target: Path, *, offline: bool, progress: bool | None) -> str | None:
    """Link a file from the cache of ``huggingface_hub`` to ``target``, after downloading it into the cache if needed.

    Returns
    -------
    The sha256, or ``None`` if the file has no place on the hub, the endpoint is a plain mirror, ``huggingface_hub`` fails,
    or the hash differs. The caller then downloads the file itself and reports errors.
    """
    if remote.hub is None:
        return None
    cached = None if remote.sha256 is None else _cached(remote.hub)
    if cached is None and not offline and not partial_path(target).exists():
        cached = _fetched(remote.hub, remote.url, progress)
    found = None if cached is None else sha256(cached)
    if cached is None or remote.sha256 not in (None, found):
        return None
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as work:
            link_or_copy(cached, work)
    return found


def _cached(hub: HubPlace) -> Path | None:
    """Path of the file in the cache, if any tool has downloaded it."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub.repository, hub.path, revision=hub.revision, repo_type=hub.kind)
    return Path(found) if isinstance(found, str) else None


def _fetched(hub: HubPlace, url: str, progress: bool | None) -> Path | None:
    """Download a file into the cache; its path there."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    token = None if url.startswith("https:") else False  # `None` stands for the user's token
    shown = not are_progress_bars_disabled()
    try:
        if progress is False:
            disable_progress_bars()
        found = get_hf_file_metadata(url, token=token)
        if not all(NAME.fullmatch(name or "") for name in (found.commit_hash, found.etag)):
            logger.info("%s: the server names no version of it; downloading without huggingface_hub.", hub.path)
            return None
        place: dict[str, Any] = {"revision": hub.revision, "repo_type": hub.kind, "endpoint": hub.endpoint}
        return Path(str(hf_hub_download(hub.repository, hub.path, token=token, **place)))
    except Exception as error:  # noqa: BLE001  (the HTTP library depends on the release)
        logger.info("%s: huggingface_hub failed (%s); downloading without it.", hub.path, type(error).__name__)
        return None
    finally:
        if shown:
            enable_progress_bars()
