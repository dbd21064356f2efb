"""A local HTTP server that serves bytes, and goes wrong where a test asks it to."""

from __future__ import annotations

import hashlib
import random
import re
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import pytest

from scfm.weights.download import RemoteFile, download

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from pathlib import Path

BODY = random.Random(0).randbytes(200_000)
HASH = hashlib.sha256(BODY).hexdigest()
OTHER = BODY[::-1]
MODIFIED = "Wed, 01 Jan 2025 10:00:00 GMT"


@dataclass(frozen=True)
class Fault:
    """How one request is answered; by default like any other."""

    status: int | None = None
    """Status to answer with, instead of the file."""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    """Headers to add or replace; ``None`` leaves one out."""
    body: bytes = b""
    """What comes with ``status``."""
    ignore_range: bool = False
    """Send everything, whatever was asked for."""
    ignore_condition: bool = False
    """Send the range even if the file is not the one that was asked for."""
    chunked: bool = False
    """Do not announce a length, but mark the end."""
    endless: bool = False
    """Send the file over and over; with ``chunked``."""
    stop_after: int | None = None
    """Close the connection after so many bytes of the body."""
    reset: bool = False
    """Close it the hard way."""
    hold: threading.Event | None = None
    """Wait for this (or the end of the server) after ``stop_after`` bytes, then send the rest."""
    drip: float = 0
    """Seconds between pieces of the body, of which there are ten."""
    then: Callable[[], object] = lambda: None
    """Called after the answer."""


@dataclass
class Seen:
    """One request, and how many bytes of a body it was sent."""

    path: str
    headers: dict[str, str]
    sent: int = 0


class FileServer:
    """Serves ``files`` by path; ``script`` holds the faults of the next requests, ``always`` that of all others.

    With ``commit`` it is a hub; one with a ``login`` wants to be sent it.
    """

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.script: deque[Fault] = deque()
        self.always = Fault()
        self.seen: list[Seen] = []
        self.heads: list[Seen] = []
        self.commit = self.login = ""
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._http = _Server((host, 0), _Handler)
        self._http.owner = self
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._http.server_address[1]
        self.scheme = "http" if tls is None else "https"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.005})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def url(self, path: str = "/file", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    @property
    def ranges(self) -> list[str | None]:
        """The ``Range`` header of each request."""
        return [seen.headers.get("range") for seen in self.seen]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        head, content = handler.command == "HEAD", self.files.get(handler.path)
        with self._lock:
            seen = Seen(handler.path, {name.lower(): value for name, value in handler.headers.items()})
            (self.heads if head else self.seen).append(seen)
            fault = Fault() if head else self.script.popleft() if self.script else self.always
        if self.login and seen.headers.get("authorization") != f"Bearer {self.login}":
            fault = Fault(status=401, headers={"X-Error-Code": "GatedRepo"})
        if fault.status is not None or content is None:
            status, body, headers = fault.status or 404, fault.body, {"Content-Length": str(len(fault.body))}
        else:
            status, body, headers = self._part_of(content, seen.headers, fault)
        if fault.chunked:
            headers.pop("Content-Length", None)
            headers["Transfer-Encoding"] = "chunked"
        handler.send_response(status)
        if self.commit:
            headers["X-Repo-Commit"] = self.commit
        for name, value in {**headers, **fault.headers}.items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        if head:
            return
        self._send(handler, seen, body, fault)
        fault.then()

    def _part_of(self, content: bytes, asked: dict[str, str], fault: Fault) -> tuple[int, bytes, dict[str, str]]:
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": tag, "Last-Modified": MODIFIED, "Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-", asked.get("range", ""))
        current = asked.get("if-range", tag) in (tag, MODIFIED) or fault.ignore_condition
        start = int(span[1]) if span and current and not fault.ignore_range else None
        if start is None:
            return 200, content, {**headers, "Content-Length": str(len(content))}
        if start >= len(content):
            return 416, b"", {**headers, "Content-Length": "0", "Content-Range": f"bytes */{len(content)}"}
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return 206, content[start:], {**headers, "Content-Length": str(len(content) - start)}

    def _send(self, handler: BaseHTTPRequestHandler, seen: Seen, body: bytes, fault: Fault) -> None:
        stop = len(body) if fault.stop_after is None else min(fault.stop_after, len(body))
        step = max(1, len(body) // 10) if fault.drip else 2**16
        while fault.endless:  # until the client goes away
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(body), body))
            seen.sent += len(body)
        for start in range(0, stop, step):
            piece = body[start : min(start + step, stop)]
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if fault.chunked else piece)
            seen.sent += len(piece)
            self.closing.wait(fault.drip)
        if fault.hold is not None:
            while not (fault.hold.wait(0.01) or self.closing.is_set()):
                pass
            handler.wfile.write(body[stop:])
            seen.sent += len(body) - stop
        elif fault.chunked and fault.stop_after is None:
            handler.wfile.write(b"0\r\n\r\n")
        elif fault.stop_after is not None or "Content-Length" in fault.headers:
            handler.close_connection = True
            if fault.reset:  # with nothing to linger for, closing resets the connection
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Server(ThreadingHTTPServer):
    owner: FileServer
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error here."""

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # `shutdown` would end a connection the soft way before it is reset


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self.server.owner.answer(self)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def to(location: str | None, status: int = 302, **headers: str) -> Fault:
    return Fault(status=status, headers={"Location": location, **headers}, body=b"moved")


def left(target: Path) -> set[str]:
    """Names beside the target, the lock aside."""
    return {path.name for path in target.parent.iterdir()} - {f"{target.name}.lock"}


def part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def leave_part(server: FileServer, target: Path, size: int = 50_000, known: str | None = None, **fault: Any) -> None:
    """Have a call fail after so many bytes."""
    server.script.append(Fault(stop_after=size, **fault))
    server.script.extend([Fault(status=503)] * 5)
    with pytest.raises(ConnectionError, match=f"{size:,} of [a-z0-9, ]+ bytes are in {part(target)}"):
        download(RemoteFile(server.url(), known), target)
    assert part(target).read_bytes() == server.files["/file"][:size]
    assert left(target) == {"weights.bin.part", "weights.bin.part.json"}
    server.seen.clear()
