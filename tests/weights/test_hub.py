"""Files of the hub by its own client, and without it where that fails."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import huggingface_hub
import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

from scfm.weights.download import RemoteFile, download
from scfm.weights.transport import HubPlace

from .server import BODY, HASH, OTHER, Fault, FileServer, left

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"

pytestmark = pytest.mark.usefixtures("waits", "cache")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, nobody logged in, and a client that waits no time."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "hub"


@pytest.fixture
def hub(server: FileServer) -> FileServer:
    server.commit = COMMIT
    return server


def published(server: FileServer, known: str | None = HASH, revision: str | None = COMMIT) -> RemoteFile:
    url = server.url(f"/lab/model/resolve/{revision or 'main'}/small/weights.bin")
    server.files[url.removeprefix(server.url(""))] = BODY
    return RemoteFile(url, known, hub=HubPlace("lab/model", revision, "small/weights.bin", server.url("")))


def cached(cache: Path) -> Path:
    return cache / "models--lab--model" / "snapshots" / COMMIT / "small" / "weights.bin"


@pytest.mark.parametrize("known", [None, HASH])
@pytest.mark.parametrize("revision", [None, COMMIT])
def test_a_file_is_once_on_the_disk(
    known: str | None, revision: str | None, hub: FileServer, target: Path, cache: Path
) -> None:
    remote = published(hub, known, revision)
    assert download(remote, target) == HASH
    assert target.read_bytes() == BODY
    assert target.samefile(cached(cache))
    assert not target.is_symlink()
    assert left(target) == {"weights.bin"}
    assert download(remote, target.with_name("second")) == HASH
    assert len(hub.seen) == 1
    cached(cache).resolve().unlink()
    assert target.read_bytes() == BODY


def test_a_file_is_copied_where_it_cannot_have_a_second_name(
    hub: FileServer, target: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    assert download(published(hub), target) == HASH
    assert not target.samefile(cached(cache))
    assert target.read_bytes() == cached(cache).read_bytes() == BODY


def test_a_plain_mirror_is_asked_without_it(server: FileServer, target: Path, cache: Path) -> None:
    assert download(published(server), target) == HASH
    assert len(server.seen) == 1
    assert not cached(cache).exists()


@pytest.mark.parametrize("where", ["/tmp/x", "../../../x", "a/b", ""])
@pytest.mark.parametrize("name", ["etag", "commit"])
def test_a_mirror_does_not_name_files_outside_the_cache(
    name: str, where: str, hub: FileServer, target: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[int] = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: reached.append(1))
    monkeypatch.setattr(hub, "commit", where if name == "commit" else COMMIT)
    answer = huggingface_hub.HfFileMetadata(
        commit_hash=where if name == "commit" else COMMIT,
        etag=where if name == "etag" else "abc",
        location="",
        size=len(BODY),
        xet_file_data=None,
    )
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: answer)
    assert download(published(hub), target) == HASH
    assert not reached
    assert not cache.exists()


def test_what_another_tool_has_fetched_is_taken(hub: FileServer, target: Path, cache: Path) -> None:
    remote = published(hub)
    huggingface_hub.hf_hub_download("lab/model", remote.hub.path, revision=COMMIT, endpoint=hub.url(""))
    hub.seen.clear()
    hub.heads.clear()
    assert download(remote, target, offline=True) == HASH
    assert not hub.seen + hub.heads
    with pytest.raises(FileNotFoundError, match="scfm is offline"):  # no hash says what it is
        download(published(hub, None), target.with_name("second"), offline=True)


def test_another_file_in_the_cache_is_not_taken(hub: FileServer, target: Path, cache: Path) -> None:
    cached(cache).parent.mkdir(parents=True)
    cached(cache).write_bytes(OTHER)
    assert download(published(hub), target) == HASH
    assert target.read_bytes() == BODY
    assert cached(cache).read_bytes() == OTHER


def test_a_part_is_gone_on_with(server: FileServer, target: Path, cache: Path) -> None:
    remote = published(server)
    server.script.extend([Fault(stop_after=50_000), *[Fault(status=503)] * 5])
    with pytest.raises(ConnectionError, match="50,000 of 200,000 bytes"):
        download(remote, target)
    server.commit = COMMIT
    server.seen.clear()
    assert download(remote, target) == HASH
    assert server.ranges == ["bytes=50000-"]


@pytest.mark.parametrize("seed", range(20))
def test_drops_at_random_bytes(seed: int, hub: FileServer, target: Path) -> None:
    draw = random.Random(seed)
    for _ in range(4):
        fault = Fault(status=503) if draw.random() < 0.2 else None
        drop = Fault(stop_after=draw.randint(0, 45_000), reset=draw.random() < 0.4, chunked=draw.random() < 0.2)
        hub.script.append(fault or drop)
    assert download(published(hub), target) == HASH
    assert target.read_bytes() == BODY
    assert left(target) == {"weights.bin"}


def test_a_missing_file(hub: FileServer, target: Path) -> None:
    remote = published(hub)
    hub.files.clear()
    with pytest.raises(FileNotFoundError, match="is not there .127.0.0.1 answered 404"):
        download(remote, target)


def test_a_login_is_not_sent_in_the_clear(hub: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.login = "hf_secret"
    with pytest.raises(PermissionError, match="log in to the Hugging Face hub .*HF_TOKEN.*accept the terms"):
        download(published(hub), target)
    assert not any("authorization" in seen.headers for seen in hub.seen + hub.heads)


def test_the_login_of_the_user_is_sent(secure: FileServer, target: Path, tmp_path: Path, certificate: Path) -> None:
    secure.commit, secure.login = COMMIT, "hf_secret"
    remote = published(secure)
    code = (
        "import sys; from pathlib import Path; from scfm.weights.download import *; from scfm.weights.transport import *; "
        f"print(download({remote!r}, Path(sys.argv[1])))"
    )
    trusted = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(certificate))
    env = {**os.environ, **trusted, "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], env=env, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (f"{HASH}\n", "")
    assert "hf_secret" not in str([seen.path for seen in secure.seen])


@pytest.mark.parametrize("progress", [None, False])
def test_the_bar_of_the_client(
    progress: bool | None, hub: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden: list[bool] = []
    fetch = huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda *args, **kwargs: hidden.append(are_progress_bars_disabled()) or fetch(*args, **kwargs),
    )
    download(published(hub), target, progress=progress)
    assert hidden == [progress is False]
    assert not are_progress_bars_disabled()
