"""What has come is not fetched twice, and never becomes a mixture of two files."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from scfm.weights import transport
from scfm.weights.download import RemoteFile, download

from .server import BODY, HASH, MODIFIED, OTHER, Fault, FileServer, leave_part, left, part

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("waits")


@pytest.mark.parametrize("seed", range(100))
def test_drops_at_random_bytes(seed: int, server: FileServer, target: Path) -> None:
    draw = random.Random(seed)
    for _ in range(4):
        fault = Fault(
            stop_after=draw.randint(0, 45_000),
            reset=draw.random() < 0.4,
            chunked=draw.random() < 0.2,
            ignore_range=draw.random() < 0.1,
        )
        server.script.append(fault)
    assert download(RemoteFile(server.url(), draw.choice([None, HASH])), target) == HASH
    assert target.read_bytes() == BODY
    assert left(target) == {"weights.bin"}
    assert len(server.seen) == 5


def test_a_drop_is_resumed(server: FileServer, target: Path) -> None:
    server.script.extend([Fault(stop_after=60_000), Fault(stop_after=40_000)])
    download(RemoteFile(server.url()), target)
    assert server.ranges == [None, "bytes=60000-", "bytes=100000-"]
    assert [seen.sent for seen in server.seen] == [60_000, 40_000, 100_000]
    assert server.seen[1].headers["if-range"] == f'"{hashlib.md5(BODY).hexdigest()}"'


def test_a_later_call_goes_on(server: FileServer, target: Path) -> None:
    leave_part(server, target)
    assert download(RemoteFile(server.url(), HASH), target) == HASH
    assert server.ranges == ["bytes=50000-"]
    assert left(target) == {"weights.bin"}


def test_no_new_bytes_end_a_call(server: FileServer, target: Path, waits: list[float]) -> None:
    server.always = Fault(stop_after=0)
    with pytest.raises(
        ConnectionError, match="5 attempts in a row brought nothing new: .*IncompleteRead.*. Try again later"
    ):
        download(RemoteFile(server.url()), target)
    assert left(target) == set()
    assert len(server.seen) == 5
    assert waits == [1, 2, 4, 8]


def test_every_new_byte_counts(server: FileServer, target: Path, waits: list[float]) -> None:
    server.script.extend([Fault(stop_after=0)] * 4 + [Fault(stop_after=1)] + [Fault(stop_after=0)] * 4)
    download(RemoteFile(server.url()), target)
    assert waits == [1, 2, 4, 8, 1, 1, 2, 4, 8]


def test_a_file_is_on_the_disk_before_it_has_its_name(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr("scfm.settings.fsync", True)
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, target.exists())))
    download(RemoteFile(server.url()), target)
    assert synced == [(target.stat().st_ino, False), (target.parent.stat().st_ino, True)]


def test_nobody_listens(target: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file?signature=secret"
        with pytest.raises(ConnectionError, match="brought nothing new: NewConnectionError.*Connection refused"):
            download(RemoteFile(url), target)


@pytest.mark.parametrize("known", [None, HASH])
def test_a_read_that_times_out_is_resumed(
    known: str | None, server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "READ_SECONDS", 0.4)
    never = threading.Event()
    # fewer bytes than the buffer of a socket: those that came before the stall are not lost
    server.script.extend([Fault(stop_after=100, hold=never), Fault(stop_after=0, hold=never), Fault(hold=never)])
    download(RemoteFile(server.url(), known), target)
    assert server.ranges == [None, "bytes=100-", "bytes=100-"]
    assert target.read_bytes() == BODY


def test_a_slow_server(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "READ_SECONDS", 0.7)
    server.always = Fault(drip=0.1)
    assert download(RemoteFile(server.url()), target) == HASH
    assert len(server.seen) == 1


def test_a_server_without_ranges(server: FileServer, target: Path) -> None:
    leave_part(server, target)
    server.script.append(Fault(ignore_range=True))
    assert download(RemoteFile(server.url()), target) == HASH
    assert server.ranges == ["bytes=50000-"]


def test_a_server_without_ranges_that_drops_does_not_keep_a_call_forever(server: FileServer, target: Path) -> None:
    server.always = Fault(ignore_range=True, stop_after=150_000)
    with pytest.raises(ConnectionError, match="it had to start over 5 times"):
        download(RemoteFile(server.url()), target)
    assert len(server.seen) == 6


@pytest.mark.parametrize("fault", [Fault(), Fault(ignore_condition=True)], ids=["If-Range", "no If-Range"])
@pytest.mark.parametrize("other", [OTHER, OTHER + b"more", OTHER[:150_000], OTHER[:10]])
def test_the_file_changed(fault: Fault, other: bytes, server: FileServer, target: Path) -> None:
    leave_part(server, target)
    server.files["/file"] = other
    server.always = fault
    download(RemoteFile(server.url()), target)
    assert target.read_bytes() == other
    assert server.ranges[0] == "bytes=50000-"


def test_the_file_changes_between_two_attempts(server: FileServer, target: Path) -> None:
    server.script.append(Fault(stop_after=70_000, then=lambda: server.files.update({"/file": OTHER})))
    assert download(RemoteFile(server.url()), target) == hashlib.sha256(OTHER).hexdigest()
    assert server.ranges == [None, "bytes=70000-"]


@pytest.mark.parametrize(
    "span",
    [
        "bytes 49999-199999/200000",
        "bytes 50001-199999/200000",
        "bytes 0-199999/200000",
        "bytes 50000-199999/200001",
        "bytes 50000-199999/*",
        "bytes 50000-200000/200000",
        "bytes 50000-40000/200000",
        "bytes",
        None,
    ],
)
def test_another_range_than_was_asked_for(span: str | None, server: FileServer, target: Path) -> None:
    leave_part(server, target)
    server.script.append(Fault(headers={"Content-Range": span}))
    assert download(RemoteFile(server.url()), target) == HASH
    assert server.ranges == ["bytes=50000-", None]


def test_less_than_was_asked_for(server: FileServer, target: Path, waits: list[float]) -> None:
    leave_part(server, target)
    waits.clear()
    some = Fault(status=206, body=BODY[50_000:90_000], headers={"Content-Range": "bytes 50000-89999/200000"})
    server.script.append(some)
    assert download(RemoteFile(server.url()), target) == HASH
    assert server.ranges == ["bytes=50000-", "bytes=90000-"]
    assert waits == [1]


@pytest.mark.parametrize(
    ("headers", "condition"),
    [
        ({"ETag": None}, MODIFIED),
        ({"ETag": 'W/"weak"'}, MODIFIED),
        ({"ETag": 'W/"weak"', "Last-Modified": None}, None),
        ({"ETag": None, "Last-Modified": None}, None),
    ],
)
@pytest.mark.parametrize("known", [None, HASH])
def test_what_a_server_says_about_changes(
    headers: dict[str, str | None], condition: str | None, known: str | None, server: FileServer, target: Path
) -> None:
    server.always = Fault(headers=headers)
    if not (condition or known):  # nothing would show that two pieces are of the same file
        server.script.extend([Fault(stop_after=50_000, headers=headers), *[Fault(status=503)] * 5])
        with pytest.raises(ConnectionError, match="answered 503. Try again later"):
            download(RemoteFile(server.url()), target)
        assert left(target) == set()
        return
    leave_part(server, target, known=known, headers=headers)
    assert download(RemoteFile(server.url(), known), target) == HASH
    assert server.ranges == ["bytes=50000-"]
    assert server.seen[0].headers.get("if-range") == condition


@pytest.mark.parametrize(
    "note",
    [
        None,
        "",
        "[]",
        '{"url": 1}',
        '{"url": "URL", "total": "200000", "etag": null, "modified": null}',
        '{"url": "URL", "total": 200000, "etag": 5, "modified": null}',
        '{"url": "URL", "total": 200000, "etag": null, "modified": null, "more": 1}',
        '{"url": "URL/other", "total": 200000, "etag": null, "modified": null}',
        '{"url": "URL", "total": 10, "etag": "\\"a\\"", "modified": null}',
    ],
)
def test_a_part_without_a_readable_note_is_not_used(note: str | None, server: FileServer, target: Path) -> None:
    leave_part(server, target)
    if note is None:
        target.with_name("weights.bin.part.json").unlink()
    else:
        target.with_name("weights.bin.part.json").write_text(note.replace("URL", server.url()))
    assert download(RemoteFile(server.url(), HASH), target) == HASH
    assert server.ranges == [None]


@pytest.mark.parametrize("known", [None, HASH])
def test_a_whole_part_needs_no_request(known: str | None, server: FileServer, target: Path) -> None:
    leave_part(server, target)
    part(target).write_bytes(BODY)
    assert download(RemoteFile(server.url(), known), target) == HASH
    assert not server.seen
    assert left(target) == {"weights.bin"}


def test_a_length_that_is_not_announced(server: FileServer, target: Path) -> None:
    leave_part(server, target, size=65_536, chunked=True)
    server.always = Fault(chunked=True, headers={"Content-Length": "5"})  # does not hold beside chunks
    assert download(RemoteFile(server.url()), target) == HASH
    assert server.ranges == ["bytes=65536-"]
    assert download(RemoteFile(server.url()), target.with_name("second")) == HASH


def test_an_end_that_cannot_be_told(server: FileServer, target: Path) -> None:
    server.always = Fault(headers={"Content-Length": None})  # lasts until the connection ends
    with pytest.raises(ValueError, match="does not say how long it is, and no sha256 is known"):
        download(RemoteFile(server.url()), target)
    assert download(RemoteFile(server.url(), HASH), target) == HASH


def test_a_body_of_more_bytes_than_announced(server: FileServer, target: Path) -> None:
    leave_part(server, target)
    longer = Fault(status=206, body=BODY[50_000:] + b"more", headers={"Content-Range": "bytes 50000-199999/200000"})
    server.script.extend([longer, *[Fault(status=503)] * 5])
    with pytest.raises(ConnectionError, match="brought nothing new"):
        download(RemoteFile(server.url()), target)
    assert left(target) == set()
    assert download(RemoteFile(server.url()), target) == HASH
    assert server.ranges == ["bytes=50000-", *[None] * 6]


@pytest.mark.parametrize("known", [None, HASH])
def test_an_answer_without_end(
    known: str | None, server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scfm.weights.download.MAX_UNANNOUNCED", 10 * len(BODY))
    server.always = Fault(chunked=True, endless=True)
    with pytest.raises(ValueError, match="sends more than 2,000,000 bytes without announcing a size"):
        download(RemoteFile(server.url(), known), target)
    assert left(target) == set()
    assert len(server.seen) == 1


def test_a_packed_answer(server: FileServer, target: Path) -> None:
    server.always = Fault(headers={"Content-Encoding": "gzip"})
    with pytest.raises(ValueError, match="sends it packed .'gzip'., and no sha256 is known"):
        download(RemoteFile(server.url()), target)
    assert download(RemoteFile(server.url(), HASH), target) == HASH  # it was only called packed
