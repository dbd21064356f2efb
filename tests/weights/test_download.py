"""A file arrives whole and right, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from scfm.weights.download import RemoteFile, download

from .server import BODY, HASH, OTHER, Fault, FileServer, leave_part, left, part

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCRIPT = "import sys; from pathlib import Path; from scfm.weights.download import *; "
CALL = "print(download(RemoteFile(sys.argv[1]), Path(sys.argv[2])))"


pytestmark = pytest.mark.usefixtures("waits")


@pytest.mark.parametrize("known", [None, HASH])
@pytest.mark.parametrize("progress", [None, True, False])
def test_a_file_is_fetched(
    server: FileServer, target: Path, known: str | None, progress: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download(RemoteFile(server.url(), known), target, progress=progress) == HASH
    assert target.read_bytes() == BODY
    assert left(target) == {"weights.bin"}
    assert [(seen.path, seen.sent) for seen in server.seen] == [("/file", len(BODY))]
    headers = server.seen[0].headers
    assert headers["accept-encoding"] == "identity"
    assert not {"range", "if-range", "authorization", "cookie"} & set(headers)
    assert ("weights.bin: 100%" in capsys.readouterr().err) == (progress is True)


@pytest.mark.parametrize("size", [0, 1])
def test_small_files(server: FileServer, target: Path, size: int) -> None:
    server.files["/file"] = BODY[:size]
    download(RemoteFile(server.url()), target)
    assert target.read_bytes() == BODY[:size]


@pytest.mark.parametrize("offline", [False, True])
def test_what_is_there_is_not_fetched(target: Path, offline: bool) -> None:
    target.parent.mkdir(parents=True)
    target.write_bytes(BODY)
    for known in (None, HASH):
        assert download(RemoteFile("https://nowhere.invalid/file", known), target, offline=offline) == HASH
    assert left(target) == {"weights.bin"}
    with pytest.raises(ValueError, match=rf"{target} has sha256 {HASH}, expected 0{{64}}.*Remove it.*fetches it again"):
        download(RemoteFile("https://nowhere.invalid/file", "0" * 64), target, offline=offline)
    assert target.read_bytes() == BODY


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path} is a folder; expected the file https://nowhere.invalid/file"):
        download(RemoteFile("https://nowhere.invalid/file"), tmp_path)


def test_offline(server: FileServer, target: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{target} is not there, and scfm is offline.*{server.url()}"):
        download(RemoteFile(server.url()), target, offline=True)
    assert not server.seen
    assert not target.parent.exists()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a.org/b", "https:///b", "a.org/b", "https://[::1/b", ""])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="is not the address of a file; expected https://host/path"):
        RemoteFile(url)


def test_an_address_with_a_password_is_refused_and_not_repeated() -> None:
    RemoteFile("https://a.org?at=@")
    for password in ("secret", "my/secret", "my#secret", "my[secret", "my@secret"):
        with pytest.raises(ValueError, match="has a user name or a password in it") as caught:
            RemoteFile(f"https://me:{password}@a.org/b")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("known", ["", HASH.upper(), HASH[:-1]])
def test_a_hash_that_is_none(known: str) -> None:
    with pytest.raises(ValueError, match="expected 64 hexadecimal digits"):
        RemoteFile("https://a.org/b", known)


def test_a_truncated_file_is_not_taken(server: FileServer, target: Path) -> None:
    server.always = Fault(headers={"Content-Length": str(len(BODY) + 1)})
    with pytest.raises(ConnectionError, match="it had to start over 5 times"):  # there is nothing behind the end
        download(RemoteFile(server.url()), target)
    assert not target.exists()


def test_a_wrong_hash(server: FileServer, target: Path) -> None:
    server.files["/file"] = OTHER
    found = hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(ValueError, match=rf"{server.url()} has sha256 {found}, expected {HASH}, in two attempts"):
        download(RemoteFile(server.url(), HASH), target)
    assert left(target) == set()
    assert server.ranges == [None, None]


def test_a_wrong_hash_is_tried_once_more(server: FileServer, target: Path) -> None:
    server.files["/file"] = OTHER
    server.script.append(Fault(then=lambda: server.files.update({"/file": BODY})))
    assert download(RemoteFile(server.url(), HASH), target) == HASH
    assert server.seen[1].headers["cache-control"] == "no-cache"


def test_a_damaged_part(server: FileServer, target: Path) -> None:
    leave_part(server, target)
    part(target).write_bytes(b"x" * 50_000)
    assert download(RemoteFile(server.url(), HASH), target) == HASH
    assert server.ranges == ["bytes=50000-", None]


def spawn(server: FileServer, target: Path) -> subprocess.Popen[str]:
    call = [sys.executable, "-c", SCRIPT + CALL, server.url(), str(target)]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_ends_leaves_its_part(signal_: signal.Signals, server: FileServer, target: Path) -> None:
    server.script.append(Fault(stop_after=123_456, hold=threading.Event()))
    with spawn(server, target) as process:
        wait_for(lambda: part(target).exists() and part(target).stat().st_size == 123_456)
        process.send_signal(signal_)
        _, text = process.communicate()
    assert process.returncode not in (0, 1)
    assert ("KeyboardInterrupt" in text) == (signal_ == signal.SIGINT)
    assert part(target).read_bytes() == BODY[:123_456]
    assert json.loads(target.with_name("weights.bin.part.json").read_text())["total"] == len(BODY)
    assert download(RemoteFile(server.url(), HASH), target) == HASH
    assert server.ranges == [None, "bytes=123456-"]


def test_two_processes_fetch_once(server: FileServer, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    hold = threading.Event()
    server.script.append(Fault(stop_after=1000, hold=hold))
    with spawn(server, target) as process, ThreadPoolExecutor() as pool:
        wait_for(lambda: bool(server.seen) and server.seen[0].sent == 1000)
        with caplog.at_level(logging.WARNING, "scfm"):
            second = pool.submit(download, RemoteFile(server.url(), HASH), target)
            wait_for(lambda: "Another process is fetching" in caplog.text)
        hold.set()
        assert process.communicate() == (f"{HASH}\n", "")
        assert second.result() == HASH
    assert server.ranges == [None]


def test_a_link_in_the_place_of_the_lock_leads_nowhere(server: FileServer, target: Path, tmp_path: Path) -> None:
    target.parent.mkdir(parents=True)
    (tmp_path / "precious").write_text("all of it")
    target.with_name("weights.bin.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=rf"{target.parent} cannot be written .*symbolic links"):
        download(RemoteFile(server.url()), target)
    assert (tmp_path / "precious").read_text() == "all of it"


def test_a_file_in_the_place_of_the_folder(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(OSError, match=rf"{tmp_path / 'cache'} cannot be written .*SCFM_CACHE_DIR"):
        download(RemoteFile(server.url()), tmp_path / "cache" / "file")
    assert not server.seen


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else(server: FileServer, target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.parent.chmod(0o500)
    with pytest.raises(PermissionError, match=rf"{target.parent} cannot be written .*SCFM_CACHE_DIR"):
        download(RemoteFile(server.url()), target)
    assert not server.seen


def test_too_little_room(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_part(server, target)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=149_999))
    with pytest.raises(OSError, match="has 149,999 bytes free, and 150,000 more are needed.*SCFM_CACHE_DIR") as caught:
        download(RemoteFile(server.url()), target)
    assert caught.value.errno == errno.ENOSPC
    assert part(target).stat().st_size == 50_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=150_000))
    assert download(RemoteFile(server.url()), target) == HASH


DISK = """
import shutil, subprocess
url, disk, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], check=True)
def refused(path, name="weights.bin"):
    try:
        download(RemoteFile(url + path), disk / name)
    except OSError as error:
        print(error.errno, error)
refused("/file")
refused("/unannounced")
shutil.copytree(disk, out)
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
refused("/file", "new/weights.bin")
refused("/file", "weights.bin")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system of its own")
def test_a_full_disk_and_a_read_only_one(server: FileServer, tmp_path: Path) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    may_mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(disk)]
    if shutil.which("unshare") is None or subprocess.run(may_mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    server.files["/unannounced"] = BODY
    server.script.extend([Fault(), Fault(chunked=True)])
    call = ["unshare", "-rm", sys.executable, "-c", SCRIPT + DISK, server.url(""), str(disk), str(out)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    announced, full, *read_only = done.stdout.splitlines()
    assert re.search(rf"^28 .*{disk} has [\d,]+ bytes free, and 200,000 more are needed", announced)
    assert re.search(rf"^28 .*{disk} has no space left: .*SCFM_CACHE_DIR.* Partial downloads are kept", full)
    assert len(read_only) == 2
    assert all(re.search(rf"^30 .*{disk}(/new)? cannot be written .Read-only", line) for line in read_only)
    got = (out / "weights.bin.part").read_bytes()
    assert got == BODY[: len(got)]
    assert 50_000 < len(got) <= 128 * 1024
    assert download(RemoteFile(server.url("/unannounced"), HASH), out / "weights.bin") == HASH
    assert server.ranges == [None, None, f"bytes={len(got)}-"]


def test_the_package_does_not_load_requests() -> None:
    code = "import sys, anndata, mudata; had = 'requests' in sys.modules; import scfm.weights; print(had, 'requests' in sys.modules)"
    had, has = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert had == has
