"""HTTP requests without credentials, with checked redirects and status codes."""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = [
    "DIGITS",
    "TRANSIENT",
    "HubPlace",
    "RemoteFile",
    "RetryableError",
    "ask",
    "cause",
    "check_status",
    "hub_file",
    "iter_chunks",
    "send",
]

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
MAX_REDIRECTS = 5
CHUNK = 2**20

REDIRECTS = (301, 302, 303, 307, 308)
TRANSIENT = (429, 500, 502, 503, 504)
HUB_HOSTS = (".huggingface.co", ".hf.co", ".xethub.hf.co")
"""Where the Hugging Face hub keeps its files."""
HTML = ("text/html", "application/xhtml+xml")
HOST = re.compile(r"[a-z0-9._:-]+")
DIGITS = re.compile(r"\d{1,18}", re.ASCII)


class HubPlace(NamedTuple):
    """Place of a file on the Hugging Face hub."""

    repository: str
    revision: str | None
    path: str
    endpoint: str
    kind: Literal["model", "dataset"] = "model"

    @property
    def url(self) -> str:
        """Address of the file."""
        base = self.endpoint if self.kind == "model" else f"{self.endpoint}/{self.kind}s"
        return f"{base}/{self.repository}/resolve/{self.revision or 'main'}/{self.path}"


@dataclass(frozen=True)
class RemoteFile:
    """Address and hash of a published file."""

    url: str
    """``https://…``, or ``http://…`` of a mirror."""
    sha256: str | None = None
    """Hash of the file; ``None`` if unknown, then it is trusted on first use."""
    hosts: tuple[str, ...] = ()
    """Hosts that redirects may lead to over https: ``"cdn.example.org"``, or ``".example.org"`` for all below it."""
    hub: HubPlace | None = None
    """Its repository, if ``huggingface_hub`` can download it."""

    def __post_init__(self) -> None:
        host, *_ = re.split("[/?#]", self.url.split("://", 1)[-1])
        if "@" in (host if _origin(self.url) else self.url):
            msg = "The address of a file has a user name or a password in it; none is ever sent. Remove what is before the @."
            raise ValueError(msg)
        if _origin(self.url) is None:
            msg = f"{self.url!r} is not the address of a file; expected https://host/path, or http://host/path of a mirror."
            raise ValueError(msg)
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            msg = f"The sha256 of {self.url} is {self.sha256!r}; expected 64 hexadecimal digits in lower case."
            raise ValueError(msg)


def hub_file(place: HubPlace, sha256: str | None) -> RemoteFile:
    """A file of the hub, whose large files are on other hosts."""
    return RemoteFile(place.url, sha256 or None, HUB_HOSTS, place)


class RetryableError(Exception):
    """A transient failure: try again, after ``wait`` seconds, from the first byte with ``restart``."""

    def __init__(self, reason: str, *, wait: float | None = None, restart: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.restart = restart


def iter_chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield bytes as they arrive, without decompression."""
    # `read` would lose the bytes before a timeout; urllib3 before 2.1 has nothing else
    read = getattr(response.raw, "read1", response.raw.read)
    try:
        while data := read(CHUNK, decode_content=False):
            yield data
    except HTTPError as error:
        raise RetryableError(cause(error)) from error


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int


def _origin(url: str) -> _Origin | None:
    """Scheme, host and port of an address, or ``None`` if it is not valid."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not HOST.fullmatch(host) or "@" in parts.netloc:
        return None
    return _Origin(parts.scheme, host, port or (443 if parts.scheme == "https" else 80))


def ask(session: requests.Session, remote: RemoteFile, headers: Mapping[str, str]) -> requests.Response:
    """Send a request and follow allowed redirects."""
    url = remote.url
    for _ in range(MAX_REDIRECTS + 1):
        response = send(session, url, headers)
        if response.status_code not in REDIRECTS:
            return response
        response.close()
        url = redirected(remote, url, response.headers.get("Location", ""))
    msg = f"{remote.url} redirects more than {MAX_REDIRECTS} times: the server is set up wrongly. Try again later."
    raise OSError(msg)


def redirected(remote: RemoteFile, url: str, location: str) -> str:
    """Address that a redirect leads to; an error if it is not allowed."""
    try:
        # http.client decodes headers as latin-1, whatever their bytes are
        following = urljoin(url, quote(location, safe="!#$%&'()*+,/:;=?@[]~", encoding="latin-1"))
    except ValueError:
        following = ""
    here, there, home = _origin(url), _origin(following), _origin(remote.url)
    if here is None or home is None or there is None or not location:
        msg = f"{remote.url} redirects to {reprlib.repr(location)}, which is not an address; try again later."
        raise OSError(msg)
    hosts = [home.host, *map(str.lower, remote.hosts)]
    known = any(there.host.endswith(host) if host.startswith(".") else there.host == host for host in hosts)
    downgraded = here.scheme == "https" != there.scheme
    if downgraded or not (there == home or (there.scheme == "https" and known)):
        msg = (
            f"{remote.url} at {home.host} redirects to {there.host} ({there.scheme}, port {there.port}), which is not "
            f"allowed; it was not asked. Redirects may lead to these hosts, over https: {', '.join(hosts)}. If the network "
            "demands a login page, log in first."
        )
        raise ValueError(msg)
    return following


def send(
    session: requests.Session, url: str, headers: Mapping[str, str], seconds: float | None = None
) -> requests.Response:
    """Send one request, without a login and without following redirects."""
    # without Session.get, which would add logins from ~/.netrc, keep cookies, and read bodies of redirects
    host = urlsplit(url).hostname
    try:
        request = requests.Request("GET", url, headers=dict(headers)).prepare()
        settings = session.merge_environment_settings(url, {}, True, None, None)
        return session.get_adapter(url).send(request, timeout=(CONNECT_SECONDS, seconds or READ_SECONDS), **settings)
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):
            raise RetryableError(cause(error)) from error
        msg = (
            f"The certificate of {host} was refused ({cause(error)}). If a proxy of your network signs connections, name "
            "its certificates in REQUESTS_CA_BUNDLE."
        )
        raise OSError(msg) from error
    except (requests.RequestException, ValueError, TypeError) as error:
        # without the text of the error, which may repeat the password of a malformed proxy address
        msg = (
            f"{host} cannot be asked ({type(error).__name__}): check the address and the proxy settings (HTTPS_PROXY; in a "
            "password there, # is written as %23 and / as %2F)."
        )
        raise OSError(msg) from None


def cause(error: BaseException) -> str:
    """Innermost cause of an error; the outer ones repeat the address, signatures included."""
    while isinstance(inner := getattr(error, "reason", None) or next(iter(error.args), None), BaseException):
        error = inner
    return f"{type(error).__name__}: {error}"


def check_status(response: requests.Response, remote: RemoteFile, target: Path) -> None:
    """Raise an error for an answer without bytes of the file."""
    code = response.status_code
    who = f"{urlsplit(response.url).hostname} answered {code}"
    if code in TRANSIENT:
        raise RetryableError(who, wait=retry_after(response))
    if code == 416:
        raise RetryableError(who, restart=True)
    aside = f"fetch it in another way and put it at {target}"
    if code in (404, 410):
        msg = f"{remote.url} is not there ({who}): check the address, or {aside}."
        raise FileNotFoundError(msg)
    if code in (401, 403):
        login = (
            "log in to the Hugging Face hub (`hf auth login`, or HF_TOKEN) and accept the terms of the model there, or "
        )
        msg = f"{remote.url} was refused ({who}): it may need a login; {login if remote.hub else ''}{aside}."
        raise PermissionError(msg)
    if code not in (200, 206):
        msg = f"{remote.url} could not be fetched ({who}; expected 200 or 206): try again later, or {aside}."
        raise OSError(msg)
    if response.headers.get("Content-Type", "").lower().startswith(HTML):
        msg = f"{remote.url} gave a web page instead of the file ({who}): log in to the network if it asks for that, or {aside}."
        raise ValueError(msg)


def retry_after(response: requests.Response) -> float | None:
    """Seconds to wait by ``Retry-After``, a number or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if DIGITS.fullmatch(text):
        return float(text)
    until, now = _moment(text), _moment(response.headers.get("Date", ""))
    return None if until is None else max(0.0, until - (time() if now is None else now))


def _moment(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
