"""Download files over HTTP: resumed after interruptions, verified, and moved into place when complete."""

from __future__ import annotations

import errno
import logging
import re
import reprlib
import shutil
from contextlib import closing, contextmanager
from dataclasses import replace
from time import sleep
from typing import TYPE_CHECKING, Any

import requests

from scfm._compat import bar_hidden
from scfm._lock import hold
from scfm.weights.hub import from_hub
from scfm.weights.partial import Content, PartialFile, disk_errors
from scfm.weights.tensors import sha256
from scfm.weights.transport import DIGITS, RemoteFile, RetryableError, ask, check_status, iter_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["RemoteFile", "download"]

ATTEMPTS = 5
BACKOFF_SECONDS = 1.0
MAX_WAIT_SECONDS = 300.0
MAX_UNANNOUNCED = 2**34
"""Maximum size of a file whose size the server does not announce; such an answer may be endless."""
RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)

logger = logging.getLogger("scfm")


def download(remote: RemoteFile, target: Path, *, offline: bool = False, progress: bool | None = None) -> str:
    """Download a file, unless it exists.

    Partial data stay in ``<target>.part`` when the connection, the process or the machine fails, and the next call
    resumes. ``target`` appears when the file is complete and its hash is right. Of several processes one downloads and
    the others wait. No credentials are sent; proxies and certificates of the environment are used.

    Files of the Hugging Face hub are downloaded by ``huggingface_hub``, with the user's login and into its cache, unless
    there is a partial file. If that fails, they are downloaded like any other file.

    Parameters
    ----------
    remote
        Address and hash.
    target
        Path of the file; parent folders are created.
    offline
        Never use the network.
    progress
        Show a progress bar; ``None``: on terminals and in notebooks.

    Returns
    -------
    The sha256 of ``target``, as hexadecimal digits.

    Raises
    ------
    FileNotFoundError
        If the file is missing and ``offline`` is set, or the server does not have it.
    PermissionError
        If the server asks for a login, or the folder is not writable.
    ConnectionError
        If five attempts in a row bring no new bytes, or the server asks to wait for more than five minutes.
    OSError
        If disk space is insufficient, or the server answers with another error.
    ValueError
        If the hash differs, the server sends a web page or an endless answer, or redirects to a host that is not allowed.
    """
    if target.exists():
        return _existing(remote, target)
    if offline:
        if found := from_hub(remote, target, offline=True, progress=progress):
            return found
        msg = (
            f"{target} is not there, and scfm is offline. Fetch it once with a network (unset SCFM_OFFLINE), or fetch "
            f"{remote.url} elsewhere and put it there."
        )
        raise FileNotFoundError(msg)
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        if target.exists():
            return _existing(remote, target)
        return from_hub(remote, target, offline=False, progress=progress) or _fetch(remote, target, progress)


def _existing(remote: RemoteFile, target: Path) -> str:
    if target.is_dir():
        msg = f"{target} is a folder; expected the file {remote.url}, or nothing. Move the folder away."
        raise ValueError(msg)
    found = sha256(target)
    if remote.sha256 not in (None, found):
        msg = (
            f"{target} has sha256 {found}, expected {remote.sha256}: it is damaged or another file. Remove it, and the "
            f"same call fetches it again from {remote.url}."
        )
        raise ValueError(msg)
    return found


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold a lock, so that one process downloads a file; the lock ends with its process at the latest."""
    file = target.with_name(f"{target.name}.lock")
    with disk_errors(target.parent):
        try:
            held = hold(file, 0)
        except TimeoutError:
            logger.warning("Another process is fetching %s; waiting for it.", target)
            held = hold(file)
    with held:
        yield


def _fetch(remote: RemoteFile, target: Path, progress: bool | None) -> str:
    from tqdm.auto import tqdm

    style: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "disable": bar_hidden(progress)}
    found = ""
    with requests.Session() as session, PartialFile(remote, target) as part:
        with tqdm(total=part.content.total, initial=part.size, desc=target.name, **style) as bar:
            # a damaged copy may come from a proxy's cache
            for extra in ({}, {"Cache-Control": "no-cache"}):
                _fill(session, part, extra, bar)
                found = part.digest.hexdigest()
                if remote.sha256 in (None, found):
                    part.move()
                    return found
                part.clear()
        part.remove()
    msg = (
        f"{remote.url} has sha256 {found}, expected {remote.sha256}, in two attempts: the file was replaced there, or is "
        f"changed on the way. Nothing was put at {target}; fetch it from another source and put it there."
    )
    raise ValueError(msg)


def _fill(session: requests.Session, part: PartialFile, extra: dict[str, str], bar: Any) -> None:
    """Send requests until the file is complete or attempts bring no new bytes."""
    idle, received, restarts = 0, part.received, part.restarts
    while not part.whole:
        try:
            _attempt(session, part, extra, bar)
        except RetryableError as problem:
            idle = 0 if part.received > received else idle + 1
            received = part.received
            if problem.restart:
                part.clear()
            wait = BACKOFF_SECONDS * 2 ** max(idle - 1, 0) if problem.wait is None else problem.wait
            if wait > MAX_WAIT_SECONDS:
                why = f"{problem}, and asks to wait for {wait:,.0f} s; scfm waits for at most {MAX_WAIT_SECONDS:,.0f} s"
                raise _given_up(part, why) from problem
            if idle >= ATTEMPTS:
                raise _given_up(part, f"{ATTEMPTS} attempts in a row brought nothing new: {problem}") from problem
            if part.restarts - restarts >= ATTEMPTS:
                raise _given_up(part, f"it had to start over {ATTEMPTS} times: {problem}") from problem
            logger.info("%s: %s; asking again in %.0f s.", part.target.name, problem, wait)
            sleep(wait)


def _given_up(part: PartialFile, why: str) -> ConnectionError:
    total = "an unknown number of" if part.content.total is None else f"{part.content.total:,}"
    kept = (
        f"{part.size:,} of {total} bytes are in {part.path}; the same call goes on from there. "
        if part.resumable
        else ""
    )
    return ConnectionError(
        f"{part.remote.url} could not be fetched: {why}. {kept}Try again later, or check the network and its proxy settings."
    )


def _attempt(session: requests.Session, part: PartialFile, extra: dict[str, str], bar: Any) -> None:
    """Send one request and append the answer."""
    headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "scfm", **extra, **part.conditions()}
    with closing(ask(session, part.remote, headers)) as response:
        check_status(response, part.remote, part.target)
        _begin(response, part)
        bar.reset(part.content.total)
        bar.initial = bar.n = bar.last_print_n = part.size
        bar.refresh()
        total = part.content.total
        for data in iter_chunks(response):
            if part.size + len(data) > (MAX_UNANNOUNCED if total is None else total):
                part.clear()
                raise _too_long(part.remote, total)
            part.append(data)
            bar.update(len(data))
    if part.content.total is None:
        part.content = replace(part.content, total=part.size)
    elif not part.whole:
        reason = "the answer ended early"
        raise RetryableError(reason)


def _too_long(remote: RemoteFile, total: int | None) -> Exception:
    if total is not None:
        return RetryableError("more bytes came than were announced")
    return ValueError(
        f"{remote.url} sends more than {MAX_UNANNOUNCED:,} bytes without announcing a size: the answer may be endless. Nothing "
        "was kept; check the address."
    )


def _begin(response: requests.Response, part: PartialFile) -> None:
    """Decide whether an answer continues the partial file or replaces it; check the disk space for the rest."""
    tags = {"etag": response.headers.get("ETag"), "modified": response.headers.get("Last-Modified")}
    if response.status_code == 206:
        span = RANGE.fullmatch(response.headers.get("Content-Range", ""))
        first, last, total = map(int, span.groups()) if span else (-1, -1, -1)
        content = Content(total, **tags)
        if not (first == part.size <= last < total and part.content.could_match(content)):
            reason = "the server sent another range than was asked for, or the file changed there"
            raise RetryableError(reason, restart=True)
    else:
        content = Content(_length(response), **tags)
    encoding = response.headers.get("Content-Encoding", "identity")
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    if part.remote.sha256 is None and (encoding != "identity" or (content.total is None and not chunked)):
        why = "does not say how long it is" if encoding == "identity" else f"sends it packed ({reprlib.repr(encoding)})"
        msg = (
            f"{part.remote.url}: the server {why}, and no sha256 is known, so a wrong file would pass. Give its sha256."
        )
        raise ValueError(msg)
    if content.total is not None:
        _check_space(part, content.total)
    if response.status_code == 206 and part.size:
        part.content = replace(part.content, total=content.total)
    else:
        part.start(content)


def _length(response: requests.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if DIGITS.fullmatch(text) and "Transfer-Encoding" not in response.headers else None


def _check_space(part: PartialFile, total: int) -> None:
    free, needed = shutil.disk_usage(part.path.parent).free, total - part.size
    if needed > free:
        msg = (
            f"{part.path.parent} has {free:,} bytes free, and {needed:,} more are needed for {part.target.name}: make room "
            "there, or set SCFM_CACHE_DIR to another folder."
        )
        raise OSError(errno.ENOSPC, msg)
