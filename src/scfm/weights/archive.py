"""Unpack published archives of weights safely: plain files only, below one folder."""

from __future__ import annotations

import gzip
import re
import reprlib
import tarfile
import unicodedata
from contextlib import contextmanager
from copy import copy
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, cast

from scfm._paths import atomic, check_new, check_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["read_head", "unpack"]

MAX_MEMBERS = 10_000
MAX_NAME = 1024
MAX_PART_BYTES = 255
MAX_READ = 2**20
MAX_HEADERS = 2**24
MAX_GLOBAL = 100
MAX_PADDING = 64 * 2**20
ROOM, RATIO = 100_000_000, 20
GZIP = b"\x1f\x8b"
EXTENDED = (b"x", b"g", b"X")
RECORD = re.compile(rb"(\d{1,7}) ([^=\0-\x1f]{1,500})=")
LONG_NUMBER = re.compile(rb"\d{100}")

Member = tuple[tuple[str, ...], tarfile.TarInfo]


def unpack(archive: Path, folder: Path, *, max_bytes: int | None = None) -> Path:
    """Unpack a ``.tar`` or ``.tar.gz`` that holds one folder of plain files.

    All members are checked before anything is written, so a compressed archive is read twice. The folder appears only
    when it is complete. AppleDouble files of macOS (``._*``) are skipped.

    Parameters
    ----------
    archive
        File to unpack, such as ``tf_sapiens.tar.gz``.
    folder
        Parent of the unpacked folder; created if missing.
    max_bytes
        Largest total size of the members; by default twenty times the size of the archive plus 100 MB.

    Returns
    -------
    The unpacked folder, such as ``folder / "tf_sapiens"``.

    Raises
    ------
    FileNotFoundError
        If the archive does not exist.
    FileExistsError
        If the unpacked folder exists already.
    ValueError
        If the file is not such an archive, is truncated or damaged, or holds links, devices, paths outside the folder,
        more than one folder, duplicate paths, or more than ``max_bytes``.
    """
    compressed = read_head(archive, "an archive").startswith(GZIP)
    most = ROOM + RATIO * archive.stat().st_size if max_bytes is None else max_bytes
    with archive.open("rb") as file:
        stream = _Stream(gzip.GzipFile(fileobj=file) if compressed else file)
        with _damage_named(archive), tarfile.open(fileobj=cast("BinaryIO", stream), mode="r:") as tar:
            # the checks below refuse more; this is for what nobody has thought of yet
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            members = _members(tar, archive, most)
            stream.in_headers = False
            _check_end(stream, archive)
            _check_tree(members, archive)
            target = folder / members[0][0][0]
            check_new(target, parents=True)
            folder.mkdir(parents=True, exist_ok=True)
            with atomic(target) as work:
                for parts, member in members:
                    _write(tar, member, work, parts[1:])
    return target


def read_head(path: Path, what: str) -> bytes:
    """Read the first bytes of a downloaded file, and refuse what downloads often return instead.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is a folder, a pipe or a device, a git-lfs pointer or a web page.
    """
    check_regular(path)
    if not path.exists():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    if path.is_dir():
        msg = f"{path} is a folder, not {what}."
        raise ValueError(msg)
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"version https://git-lfs"):
        msg = f"{path} is a git-lfs pointer, not {what}: run `git lfs pull` where it came from."
        raise ValueError(msg)
    if head.lstrip()[:1] == b"<" and b"\0" not in head:  # safetensors start with a length, which may look like "<"
        msg = f"{path} is a web page, not {what}: the download went wrong; fetch the file again."
        raise ValueError(msg)
    return head


class _Stream:
    """File object for tarfile that bounds the size of reads, and of headers, which cost tarfile time and memory."""

    def __init__(self, file: BinaryIO | gzip.GzipFile) -> None:
        self._file = file
        self.last = b""
        self.in_headers = True
        self._n_read = 0
        self._n_global = 0

    def read(self, size: int = -1) -> bytes:
        # tarfile reads long names and extended headers at once, whatever size they declare
        if not 0 <= size <= MAX_READ:
            msg = f"a header of {size:,} bytes"
            raise tarfile.ReadError(msg)
        before, self.last = self.last, self._file.read(size)
        if self.in_headers:
            self._n_read += len(self.last)
            if self._n_read > MAX_HEADERS:
                msg = f"more than {MAX_HEADERS:,} bytes of headers"
                raise tarfile.ReadError(msg)
            if len(before) == tarfile.BLOCKSIZE and before[156:157] in EXTENDED:
                found = _check_records(self.last)
                self._n_global += found if before[156:157] == b"g" else 0
        if self._n_global > MAX_GLOBAL:  # each member gets a copy
            msg = f"more than {MAX_GLOBAL} records for all members"
            raise tarfile.ReadError(msg)
        return self.last

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


def _check_records(header: bytes) -> int:
    """Count the records of an extended header, and refuse malformed ones, on which tarfile can hang."""
    position = number = 0
    while position < len(header) and header[position]:
        record = RECORD.match(header, position)
        end = position + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(header) or header[end - 1 : end] != b"\n":
            msg = "an extended header that is damaged"
            raise tarfile.ReadError(msg)
        if record[2] == b"GNU.sparse.major":
            msg = "a file with holes, which is not unpacked"
            raise tarfile.ReadError(msg)
        position, number = end, number + 1
    if LONG_NUMBER.search(header):
        msg = "an extended header with a number of more than 100 digits"
        raise tarfile.ReadError(msg)
    return number


@contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    """Turn errors of reading into a ValueError that names the archive; errors of the disk pass through."""
    try:
        yield
    except Exception as error:
        refused = isinstance(error, ValueError) and str(error).startswith(str(archive))
        if refused or (isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile)):
            raise
        msg = (
            f"{archive} is not a readable .tar or .tar.gz ({type(error).__name__}: {error}): it is cut off or damaged; "
            "fetch it again."
        )
        raise ValueError(msg) from error


def _members(tar: tarfile.TarFile, archive: Path, max_bytes: int) -> list[Member]:
    """Path and header of the members to write; each is checked before tarfile reads the next."""
    members: list[Member] = []
    total = 0
    for number, member in enumerate(tar, start=1):
        if number > MAX_MEMBERS:
            msg = f"{archive} has more than {MAX_MEMBERS:,} members; published weights have a few dozen. Is it another archive?"
            raise ValueError(msg)
        parts = _parts(member, archive)
        if not member.isdir() and (not member.isreg() or member.issparse()):
            raise _refused(
                archive, member, "is a link, a device or another special file; only plain files are unpacked"
            )
        if member.size < 0:
            raise _refused(archive, member, f"has {member.size} bytes; the archive is damaged")
        total += member.size
        if total > max_bytes:
            why = f"brings the archive to {total:,} bytes, more than the {max_bytes:,} that it may hold; unpack it yourself if you trust the source"
            raise _refused(archive, member, why)
        if parts and not (member.isreg() and parts[-1].startswith("._")):
            members.append((parts, member))
    return members


def _parts(member: tarfile.TarInfo, archive: Path) -> tuple[str, ...]:
    """Parts of a path that is safe on every system; empty for the folder itself (``./``)."""
    name = member.name
    parts = PurePosixPath(name).parts
    plain = name and len(name) <= MAX_NAME and name.isprintable() and not set(name) & {"\\", ":"}
    # Windows ignores dots and spaces at the end of a name
    inside = not name.startswith("/") and all(part == part.rstrip(". ") for part in parts)
    if not (plain and inside and all(len(part.encode()) <= MAX_PART_BYTES for part in parts)):
        raise _refused(archive, member, "has a name that is absolute, leads out of the folder or cannot be written")
    if not parts and not member.isdir():
        raise _refused(archive, member, "has a name that is not a file name")
    return parts


def _check_tree(members: list[Member], archive: Path) -> None:
    """Check that one folder holds everything and that no two members collide."""
    if not any(member.isreg() for _, member in members):
        msg = f"{archive} holds no files; expected one folder with files. Fetch it again."
        raise ValueError(msg)
    top = members[0][0][0]
    seen: set[str] = set()
    files: set[str] = set()
    for parts, member in members:
        if parts[0] != top or (len(parts) == 1 and not member.isdir()):
            raise _refused(
                archive, member, f"lies outside the folder {top!r}; expected one folder that holds everything"
            )
        key = _key(parts)
        if key in seen:
            raise _refused(archive, member, "occurs twice, or differs from another only in the case of letters")
        seen.add(key)
        if member.isreg():
            files.add(key)
    for parts, member in members:
        if any(_key(parts[:depth]) in files for depth in range(1, len(parts))):
            raise _refused(archive, member, "lies in a folder that is a file, too")


def _key(parts: tuple[str, ...]) -> str:
    """Key that is equal for paths that some file systems do not distinguish."""
    return unicodedata.normalize("NFC", "/".join(parts)).casefold()


def _check_end(stream: _Stream, archive: Path) -> None:
    """Check for the zeros that mark the end, because tarfile takes any unreadable block for it."""
    if stream.last != bytes(tarfile.BLOCKSIZE):
        msg = f"{archive} has no end mark: it is cut off or damaged; fetch it again."
        raise ValueError(msg)
    left = MAX_PADDING
    while chunk := stream.read(2**16):
        left -= len(chunk)
        if left < 0 or chunk.count(0) != len(chunk):
            msg = f"{archive} goes on after its end mark: it is damaged, or more than one archive; fetch it again."
            raise ValueError(msg)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, parts: tuple[str, ...]) -> None:
    """Write a member under its path in the folder, without the owner, times and rights that the archive gives it."""
    if member.isdir():
        folder.joinpath(*parts).mkdir(parents=True, exist_ok=True)
        return
    member = copy(member)
    member.name = "/".join(parts)
    tar.extract(member, folder, set_attrs=False)


def _refused(archive: Path, member: tarfile.TarInfo, why: str) -> ValueError:
    return ValueError(
        f"{archive} was refused, nothing of it was written: its member {reprlib.repr(member.name)} {why}."
    )
