"""An archive is unpacked whole or not at all, and never outside its folder."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from scfm.weights import archive as module
from scfm.weights.archive import unpack

if TYPE_CHECKING:
    from pathlib import Path

FILES = {"tf/config.json": b"{}", "tf/model_weights.pt": os.urandom(3000), "tf/vocabs/a_gene.h5": b"\x89HDF"}
Entry = tuple[str, bytes, dict[str, Any]]


def entry(name: str, content: bytes = b"", **header: Any) -> Entry:
    return name, content, header


def folder(name: str) -> Entry:
    return entry(name, type=tarfile.DIRTYPE)


GOOD = [folder("tf"), *(entry(name, content) for name, content in FILES.items())]


def packed(entries: list[Entry], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of members in this order, whatever their names and types are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content, header in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in header.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def found(top: Path) -> dict[str, bytes]:
    files = [path for path in top.rglob("*") if path.is_file()]
    return {path.relative_to(top.parent).as_posix(): path.read_bytes() for path in files}


def outside(tmp_path: Path) -> set[str]:
    return {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dotted", ["", "./"])
def test_an_archive_is_unpacked(form: int, compressed: bool, dotted: str, tmp_path: Path) -> None:
    entries = [entry(dotted + name, content, **header) for name, content, header in GOOD]
    content = packed([folder("./"), *entries] if dotted else entries, form)
    path = tmp_path / ("tf.tar.gz" if compressed else "tf.tar")
    path.write_bytes(gzip.compress(content) if compressed else content)
    top = unpack(path, tmp_path / "new" / "models")
    assert top == tmp_path / "new" / "models" / "tf"
    assert found(top) == FILES
    assert list(top.parent.iterdir()) == [top]


def test_modes_and_owners_are_those_of_a_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(packed([entry("a/b", b"1", mode=0o6777, uid=12345, mtime=5), folder("a/c")]))
    top = unpack(path, tmp_path)
    assert stat.S_IMODE((top / "b").stat().st_mode) == 0o644
    assert (top / "b").stat().st_uid == os.getuid()
    assert (top / "c").is_dir()
    assert stat.S_IMODE(top.stat().st_mode) & 0o500 == 0o500


def test_companions_of_macos_and_extended_headers_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    long_name = "tf/" + "n" * 150
    companions = [entry("._tf", b"x"), entry("tf/._config.json", b"x"), entry("tf/vocabs/._b", b"x")]
    extended = entry(long_name, b"1", pax_headers={"comment": "x" * 2000, "mtime": "1.5"})
    path.write_bytes(gzip.compress(packed([companions[0], *GOOD, *companions[1:], extended])))
    assert found(unpack(path, tmp_path)) == {**FILES, long_name: b"1"}


def test_what_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(packed(GOOD))
    (tmp_path / "tf").mkdir()
    with pytest.raises(FileExistsError, match="tf exists already; choose another name, or remove it first"):
        unpack(path, tmp_path)
    (tmp_path / "tf").rmdir()
    (tmp_path / "tf").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="tf exists already"):
        unpack(path, tmp_path)
    assert outside(tmp_path) == {"a.tar", "tf"}


MAIN = entry("tf/a", b"1")
BAD: dict[str, tuple[list[Entry], str]] = {
    "absolute": ([MAIN, entry("/etc/x", b"1")], "'/etc/x' has a name that is absolute"),
    "absolute alone": ([entry("/tf/x", b"1")], "'/tf/x' has a name"),
    "double slash": ([entry("//tf/x", b"1")], "'//tf/x' has a name"),
    "up": ([MAIN, entry("tf/../../x", b"1")], "'tf/../../x' has a name"),
    "up first": ([entry("../tf/x", b"1")], "'../tf/x' has a name"),
    "up folder": ([MAIN, folder("tf/../..")], "'tf/../..' has a name"),
    "up companion": ([MAIN, entry("../._x", b"1")], "'../._x' has a name"),
    "back": ([MAIN, entry("tf\\..\\..\\x", b"1")], "has a name"),
    "drive": ([MAIN, entry("C:x", b"1")], "'C:x' has a name"),
    "up with a space": ([MAIN, entry("tf/.. /x", b"1")], "has a name"),
    "dot at the end": ([MAIN, entry("tf/a.", b"1")], "has a name"),
    "null": ([MAIN, entry("x", b"1", pax_headers={"path": "tf/a\0b"})], "has a name"),
    "line": ([MAIN, entry("tf/a\nb", b"1")], "has a name"),
    "no text": ([MAIN, entry("tf/a\udcff", b"1")], "has a name"),
    "long part": ([MAIN, entry("tf/" + "a" * 256, b"1")], "has a name"),
    "long name": ([MAIN, entry("tf/" + "a/" * 600 + "b", b"1")], "has a name"),
    "dot": ([MAIN, entry(".", b"1")], "'.' has a name that is not a file name"),
    "hidden path": ([MAIN, entry("tf/x", b"1", pax_headers={"path": "/etc/x"})], "'/etc/x' has a name"),
    "symlink": ([MAIN, entry("tf/l", type=tarfile.SYMTYPE, linkname="/etc")], "'tf/l' is a link"),
    "symlink companion": ([MAIN, entry("tf/._l", type=tarfile.SYMTYPE, linkname="/etc")], "'tf/._l' is a link"),
    "hardlink": ([MAIN, entry("tf/l", type=tarfile.LNKTYPE, linkname="tf/a")], "'tf/l' is a link"),
    "through a link": (
        [folder("tf"), entry("tf/l", type=tarfile.SYMTYPE, linkname="../.."), entry("tf/l/x", b"1")],
        "'tf/l' is a link",
    ),
    "fifo": ([MAIN, entry("tf/p", type=tarfile.FIFOTYPE)], "'tf/p' is a link, a device"),
    "device": ([MAIN, entry("tf/d", type=tarfile.CHRTYPE, devmajor=1, devminor=3)], "'tf/d' is a link, a device"),
    "block": ([MAIN, entry("tf/d", type=tarfile.BLKTYPE)], "'tf/d' is a link, a device"),
    "volume": ([MAIN, entry("tf/v", type=b"V")], "'tf/v' is a link, a device or another special file"),
    "sparse": (
        [MAIN, entry("tf/s", b"1", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "1"})],
        "'tf/s' is a link, a device or another",
    ),
    "two folders": ([MAIN, entry("other/b", b"1")], "'other/b' lies outside the folder 'tf'"),
    "beside": ([MAIN, entry("b", b"1")], "'b' lies outside the folder 'tf'"),
    "no folder": ([entry("b", b"1")], "'b' lies outside the folder"),
    "in place of the folder": ([MAIN, entry("tf", b"1")], "'tf' lies outside"),
    "twice": ([MAIN, MAIN], "'tf/a' occurs twice"),
    "folder twice": ([folder("tf"), MAIN, folder("tf")], "'tf' occurs twice"),
    "twice in disguise": ([MAIN, entry("tf/./a", b"1")], "'tf/./a' occurs twice"),
    "case": ([MAIN, entry("tf/A", b"1")], "'tf/A' occurs twice, or differs from another only in the case"),
    "file as folder": ([MAIN, entry("tf/a/b", b"1")], "'tf/a/b' lies in a folder that is a file"),
    "folder as file": ([entry("tf/a/b", b"1"), MAIN], "'tf/a/b' lies in a folder that is a file"),
    "file and folder": ([MAIN, folder("tf/a")], "'tf/a' occurs twice"),
    "nothing": ([], "holds no files"),
    "only folders": ([folder("tf"), folder("tf/a")], "holds no files"),
    "only companions": ([entry("._tf", b"1")], "holds no files"),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", BAD)
def test_nothing_is_written_of_a_bad_archive(kind: str, compressed: bool, tmp_path: Path) -> None:
    entries, match = BAD[kind]
    content = packed(entries)
    path = tmp_path / "bad.tar.gz"
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(ValueError, match=f"bad.tar.gz .*{match}"):
        unpack(path, tmp_path / "a" / "out")
    assert outside(tmp_path) == {"bad.tar.gz"}


def test_size_and_number_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(packed(GOOD)))
    size = sum(map(len, FILES.values()))
    with pytest.raises(
        ValueError, match=rf"'tf/vocabs/a_gene.h5' brings .* to 3,006 bytes, more than the {size - 1:,}"
    ):
        unpack(path, tmp_path / "out", max_bytes=size - 1)
    monkeypatch.setattr(module, "MAX_MEMBERS", 3)
    with pytest.raises(ValueError, match="more than 3 members"):
        unpack(path, tmp_path / "out", max_bytes=size)
    assert outside(tmp_path) == {"a.tar.gz"}
    monkeypatch.setattr(module, "MAX_MEMBERS", 4)
    assert found(unpack(path, tmp_path, max_bytes=size)) == FILES


def test_an_archive_does_not_become_many_times_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM", 1000)
    path, content = tmp_path / "a.tar.gz", bytes(10**6)
    path.write_bytes(gzip.compress(packed([folder("tf"), entry("tf/a", content)])))
    limit = 1000 + 20 * path.stat().st_size
    with pytest.raises(ValueError, match=f"'tf/a' brings .* to 1,000,000 bytes, more than the {limit:,}"):
        unpack(path, tmp_path / "out")
    assert outside(tmp_path) == {"a.tar.gz"}
    assert found(unpack(path, tmp_path / "out", max_bytes=10**6)) == {"tf/a": content}


def resized(content: bytes, size: bytes, member: int = 0) -> bytes:
    """Let the header of a member declare another size."""
    at = [i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"][member]
    head = bytearray(content[at : at + 512])
    head[124:136] = size
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return content[:at] + bytes(head) + content[at + 512 :]


@pytest.mark.parametrize("form", ["", "x", "g", "L"])
@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"00010000000\0", b"\x80" + b"\x7f" * 11, b"\xff" * 11 + b"\0", b"\xff" * 10 + b"\0\0"]
)
def test_declared_sizes_are_not_believed(form: str, size: bytes, tmp_path: Path) -> None:
    """A header that says it is large, or of a negative size, leads neither to memory being taken nor to a loop."""
    header = entry("tf/long", b"1", type=form.encode()) if form else MAIN
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(resized(packed([header, MAIN], tarfile.GNU_FORMAT), size)))
    with pytest.raises(ValueError, match="a.tar.gz (was refused|is not a readable|has no end mark)"):
        unpack(path, tmp_path / "out")
    assert outside(tmp_path) == {"a.tar.gz"}


@pytest.mark.parametrize("compressed", [False, True])
def test_an_archive_that_is_cut_off(compressed: bool, tmp_path: Path) -> None:
    """Also where a member ends, and where only the trailer of gzip is missing."""
    content = packed(GOOD)
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512
    lengths = [*range(0, end + 1, 256), end + 100]
    if compressed:
        content = gzip.compress(content)
        lengths = [*range(0, len(content), 200), len(content) - 9, len(content) - 8, len(content) - 1]
    path = tmp_path / "cut.tar"
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut.tar .*(cut off|fetch)"):
            unpack(path, tmp_path / "out")
        assert outside(tmp_path) == {"cut.tar"}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a git-lfs pointer"),
        (b"<html></html>", "is a web page"),
        (b"PK\x03\x04" + bytes(100), "is not a readable .tar or .tar.gz"),
        (os.urandom(2000), "is not a readable .tar or .tar.gz"),
        (gzip.compress(b"no tar" * 200), "is not a readable .tar or .tar.gz"),
        (bytes(10240), "holds no files"),
        (packed(GOOD) + packed(GOOD), "goes on after its end mark"),
        (gzip.compress(packed(GOOD)) + gzip.compress(packed(GOOD)), "goes on after its end mark"),
        (gzip.compress(packed(GOOD)) + b"more", "is not a readable .tar or .tar.gz .BadGzipFile"),
    ],
    ids=["lfs", "page", "zip", "noise", "no tar", "zeros", "two", "two compressed", "more"],
)
def test_something_else_in_the_place_of_an_archive(content: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    with pytest.raises(FileNotFoundError, match="There is no file .*b.tar"):
        unpack(path, tmp_path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"b.tar {match}"):
        unpack(path, tmp_path)
    assert outside(tmp_path) == {"b.tar"}


def test_endless_padding_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PADDING", 2**17)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(packed(GOOD) + bytes(2**18)))
    with pytest.raises(ValueError, match="goes on after its end mark"):
        unpack(path, tmp_path)


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        msg = "disk full"
        raise OSError(msg)

    path = tmp_path / "a.tar"
    path.write_bytes(packed(GOOD))
    monkeypatch.setattr(module.tarfile, "copyfileobj", fail)
    with pytest.raises(OSError, match="^disk full$"):
        unpack(path, tmp_path)
    assert outside(tmp_path) == {"a.tar"}
