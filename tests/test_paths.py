"""Files and folders appear in their place in one step, when they are complete."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scfm._paths import atomic, check_new, check_room, is_full, read_json, replace, reserve, settle, size_of

if TYPE_CHECKING:
    from collections.abc import Callable

    Stop = Callable[..., Callable[[], bool]]


def write(path: Path, text: str, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
        path /= "part"
    path.write_text(text)


def put(path: Path, text: str, kind: str, error: BaseException | None = None) -> None:
    """Write in a block that fails at its end if there is an error."""
    with atomic(path, overwrite=True) as work:
        write(work, text, kind)
        if error is not None:
            raise error


def text_of(path: Path) -> str:
    return (path / "part" if path.is_dir() else path).read_text()


@pytest.fixture(params=["file", "folder"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_appears_when_the_block_ends(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic(path) as work:
        write(work, "new", kind)
        assert work.name == "out"
        assert not path.exists()
    assert text_of(path) == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_relative_path(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic(Path("out")) as work:
        write(work, "new", kind)
    assert text_of(tmp_path / "out") == "new"


@pytest.mark.parametrize("name", ["replaced", "n" * 255])
def test_any_name(name: str, kind: str, tmp_path: Path) -> None:
    for text in ("old", "new"):
        put(tmp_path / name, text, kind)
    assert text_of(tmp_path / name) == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_there_is_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, "old", kind)
    with atomic(path, overwrite=True) as work:
        write(work, "new", kind)
        assert text_of(path) == "old"
    assert text_of(path) == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_what_it_leads_to_is_replaced(kind: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    other, path = tmp_path / "data" / "other", tmp_path / "out"
    write(other, "other", kind)
    path.symlink_to(Path("data") / "other")
    put(path, "new", kind)
    assert path.is_symlink()
    assert text_of(other) == "new"
    assert (sorted(tmp_path.iterdir()), list((tmp_path / "data").iterdir())) == ([tmp_path / "data", path], [other])


def test_a_link_is_replaced_where_only_scfm_writes(kind: str, tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "out"
    write(other, "other", kind)
    path.symlink_to(other)
    with atomic(path, overwrite=True, links=False) as work:
        write(work, "new", kind)
    assert not path.is_symlink()
    assert (text_of(path), text_of(other)) == ("new", "other")
    assert sorted(tmp_path.iterdir()) == [other, path]


def test_a_folder_gives_way_only_when_asked_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    with atomic(path) as work:
        write(work, "first", "folder")
    with pytest.raises(OSError, match="not empty"), atomic(path) as work:
        write(work, "second", "folder")
    assert text_of(path) == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [OSError("disk full"), KeyboardInterrupt("disk full")], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("before", [True, False])
def test_a_failure_leaves_what_was_there(before: bool, error: BaseException, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    if before:
        write(path, "old", kind)
    with pytest.raises(type(error), match="disk full"):
        put(path, "new", kind, error)
    assert [(found, text_of(found)) for found in tmp_path.iterdir()] == [(path, "old")] * before


@pytest.fixture(params=["exchange", "two renames"])
def exchanges(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the system can exchange names."""
    if request.param == "two renames":
        monkeypatch.setattr("scfm._paths._exchange", lambda *_: False)
    elif sys.platform not in ("linux", "darwin"):
        pytest.skip("this system cannot exchange names")
    return request.param == "exchange"


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(6))
def test_a_stop_at_any_step(
    number: int, after: bool, dead: bool, kind: str, exchanges: bool, tmp_path: Path, stop_at: Stop
) -> None:
    path, texts = tmp_path / "out", ("old", "new")
    write(path, "old", kind)
    stopped = stop_at(number, after=after, dead=dead)
    try:
        put(path, "new", kind)
    except KeyboardInterrupt:
        assert stopped()
    else:
        assert not stopped()
    if exchanges or kind == "file" or not dead:  # at every moment
        assert text_of(path) in texts
    if not dead:
        assert list(tmp_path.iterdir()) == [path]
    settle(tmp_path)
    assert text_of(path) in texts
    assert list(tmp_path.iterdir()) == [path]
    put(path, "newer", kind)
    assert text_of(path) == "newer"


def test_it_is_on_the_disk_before_it_has_its_name(
    kind: str, exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "out", []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((os.fstat(handle).st_ino, text_of(path))))
    write(path, "old", kind)
    put(path, "unsynced", kind)
    assert not synced
    monkeypatch.setattr("scfm.settings.fsync", True)
    put(path, "new", kind)
    parts = [path / "part", path] if kind == "folder" else [path]
    expected = [(part.stat().st_ino, "unsynced") for part in parts] + [(tmp_path.stat().st_ino, "new")]
    assert synced == expected


def test_a_disk_that_fails_keeps_the_old(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    write(tmp_path / "out", "old", kind)
    monkeypatch.setattr("scfm.settings.fsync", True)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        put(tmp_path / "out", "new", kind)
    assert [(path.name, text_of(path)) for path in tmp_path.iterdir()] == [("out", "old")]


def test_what_a_running_process_is_writing_stays(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic(path, overwrite=True) as work:
        write(work, "first", kind)
        put(path, "second", kind)
        assert text_of(work) == "first"
    assert text_of(path) == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_removal_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, **_: object) -> None:
        (Path(path) / "lock").unlink(missing_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path / "out", "new", "file")
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.undo()
    settle(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_others_put_beside_stays(tmp_path: Path) -> None:
    others = [tmp_path / name for name in (".scfm-abcd", "other", ".out")]
    for other in others:
        (other / "mine").mkdir(parents=True)
    put(tmp_path / "out", "new", "file")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "out"])


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "out", "old", "folder")
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "out", overwrite=True):
        pass
    assert text_of(tmp_path / "out") == "old"


def test_the_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "no" / "out"):
        pytest.fail("the block was entered")
    assert not list(tmp_path.iterdir())


def test_a_file_with_a_name_of_its_own_is_moved(tmp_path: Path) -> None:
    write(tmp_path / "out.part", "new", "file")
    write(tmp_path / "out", "old", "file")
    replace(tmp_path / "out.part", tmp_path / "out")
    assert [(path.name, text_of(path)) for path in tmp_path.iterdir()] == [("out", "new")]


def test_what_is_new(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    replaces = (lambda found: (found / "part").exists()) if kind == "folder" else None
    check_new(path, replaces=replaces)
    write(path, "old", kind)
    with pytest.raises(FileExistsError, match=r"out exists already; choose another name, or remove it first\."):
        check_new(path, replaces=replaces)
    with pytest.raises(FileExistsError, match="another name, or pass --overwrite"):
        check_new(path, hint="pass --overwrite", replaces=replaces)
    check_new(path, overwrite=True, replaces=replaces)
    assert list(tmp_path.iterdir()) == [path]


def test_only_its_kind_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    check_new(path, overwrite=True, replaces=lambda _: False)  # it is empty
    with pytest.raises(FileExistsError, match="out is a folder of something else, which is not overwritten"):
        check_new(path, overwrite=True)
    (path / "photos").mkdir()
    with pytest.raises(FileExistsError, match="out is a folder of something else"):
        check_new(path, overwrite=True, replaces=lambda _: False)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file is a file, and a folder is going to be written"):
        check_new(tmp_path / "file", overwrite=True, replaces=lambda _: True)


def test_a_link_to_nowhere_is_not_new(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="out exists already"):
        check_new(path)
    check_new(path, overwrite=True)
    put(path, "new", "file")
    assert path.is_symlink()
    assert (tmp_path / "nowhere").read_text() == "new"
    path.unlink()
    path.symlink_to(tmp_path / "no" / "where")
    with pytest.raises(FileNotFoundError, match="There is no folder .*no; make it first"):
        check_new(path, overwrite=True)


def test_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for parent in ("nowhere", "file"):
        with pytest.raises(FileNotFoundError, match=f"There is no folder .*{parent}; make it first"):
            check_new(tmp_path / parent / "out", overwrite=True)
    check_new(tmp_path / "nowhere" / "out", parents=True)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is closed even to root")
def test_a_folder_that_cannot_be_written() -> None:
    for path in (Path("/proc/out"), Path("/proc/self/no/such/out")):
        with pytest.raises(
            OSError, match=r"/proc.* cannot be written \(.*\): make it writable, or choose another place"
        ):
            check_new(path, parents=True)


def test_room_is_asked_for(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(OSError, match=r"bytes free, and 1,000,000,000,000,000,000 are needed: make room") as caught:
        check_room(tmp_path, 10**18)
    assert is_full(caught.value)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(5))
    (tmp_path / "c").write_bytes(bytes(7))
    assert (size_of(tmp_path), size_of(tmp_path / "c")) == (12, 7)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="cannot be asked for here")
def test_room_is_taken_or_missing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("text")
    reserve(path, 10_000)
    assert path.stat().st_size == 10_004
    assert path.read_text().startswith("text")
    with pytest.raises(OSError, match=r"too large|No space") as caught:
        reserve(path, 2**62)
    assert is_full(caught.value)


def test_no_room_is_told_of_the_file(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "out")
    with pytest.raises(OSError, match=r"link could not be written \(No space left on device\): make room there"):
        put(link, "new", "file", OSError(errno.ENOSPC, "No space left on device"))
    assert list(tmp_path.iterdir()) == [link]


def test_json_objects_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
    with pytest.raises(ValueError, match="has 8 bytes; a config or card has at most 7"):
        read_json(path, 7)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ValueError, match="a.json is neither a file nor a folder but a pipe, a socket or a device"):
        read_json(tmp_path / "a.json")
