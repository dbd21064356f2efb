"""The beginning of a file that is being downloaded, kept so that a later call goes on from there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

from scfm._paths import read_json, replace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scfm.weights.transport import RemoteFile

__all__ = ["Content", "PartialFile", "on_disk", "part_of"]

NOTED = (("total", int | None), ("etag", str | None), ("modified", str | None))


@contextmanager
def on_disk(folder: Path) -> Iterator[None]:
    """Say what can be done where a folder takes no file."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "has no room left" if full else f"cannot be written ({error.strerror or error})"
        do = "make room there" if full else "make it writable"
        msg = (
            f"{folder} {what}: {do}, or set SCFM_CACHE_DIR to another folder. What has come is kept, and the same call "
            "goes on from there."
        )
        raise OSError(error.errno, msg) from error


def part_of(target: Path) -> Path:
    """Where what has come of a file is kept."""
    return target.with_name(f"{target.name}.part")


@dataclass(frozen=True)
class Content:
    """What a server says about the bytes behind an address."""

    total: int | None = None
    etag: str | None = None
    modified: str | None = None

    def validator(self) -> str | None:
        """What ``If-Range`` takes; a weak tag does not stand for the very bytes."""
        return self.modified if self.etag is None or self.etag.startswith("W/") else self.etag

    def may_be(self, other: Content) -> bool:
        """Whether nothing shows that two answers are about different bytes."""
        if None not in (self.total, other.total) and self.total != other.total:
            return False
        if self.etag and other.etag:
            return self.etag == other.etag
        return not (self.modified and other.modified) or self.modified == other.modified


class PartialFile:
    """The bytes that have come so far, and a note beside them on what they are part of."""

    def __init__(self, remote: RemoteFile, target: Path) -> None:
        self.remote, self.target = remote, target
        self.path = part_of(target)
        self.size = self.received = self.restarts = 0
        self.digest = hashlib.sha256()
        self._note = target.with_name(f"{target.name}.part.json")
        noted = self._read_note()
        self.content = noted or Content()
        with on_disk(target.parent):
            # not buffered: what was written outlives a killed process
            self._file = self.path.open("a+b", buffering=0)
            if noted is None:
                self._file.truncate(0)
            self._file.seek(0)
            hashlib.file_digest(self._file, lambda: self.digest)
            self.size = self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is not None and not self.resumable:
            self.remove()

    @property
    def whole(self) -> bool:
        """Whether all bytes have come; not whether they are the right ones."""
        return self.size == self.content.total

    @property
    def resumable(self) -> bool:
        """Whether a later call can go on from what has come."""
        return self.whole or bool(self.conditions())

    def conditions(self) -> dict[str, str]:
        """Headers that ask for what is missing; none if nothing would show that the file changed meanwhile."""
        validator, total = self.content.validator(), self.content.total
        provable = validator or self.remote.sha256
        if not provable or not 0 < self.size < (self.size + 1 if total is None else total):
            return {}
        return {"Range": f"bytes={self.size}-", **({"If-Range": validator} if validator else {})}

    def clear(self) -> None:
        """Forget what has come."""
        self.restarts += self.size > 0
        with on_disk(self.path.parent):
            self._file.truncate(0)
        self.size, self.digest, self.content = 0, hashlib.sha256(), Content()

    def start(self, content: Content) -> None:
        """Begin with the first byte of a file."""
        self.clear()
        self.content = content
        with on_disk(self.path.parent):
            self._note.write_text(json.dumps({"url": self.remote.url, **asdict(content)}), encoding="utf-8")

    def append(self, data: bytes) -> None:
        """Write and hash the bytes that come next."""
        view = memoryview(data)
        with on_disk(self.path.parent):
            while view:
                written = self._file.write(view)
                self.digest.update(view[:written])
                self.size += written
                self.received += written
                view = view[written:]

    def move(self) -> None:
        """Give the file its name, once it is on the disk."""
        with on_disk(self.path.parent):
            os.fsync(self._file.fileno())
            self._file.close()
            replace(self.path, self.target)
            self._note.unlink(missing_ok=True)

    def remove(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        with on_disk(self.path.parent):
            self.path.unlink()
            self._note.unlink(missing_ok=True)

    def _read_note(self) -> Content | None:
        """What an earlier call noted, if it was about this address."""
        try:
            note = read_json(self._note)
            if note.pop("url") != self.remote.url or not all(isinstance(note[name], kind) for name, kind in NOTED):
                return None
            return Content(**note)
        except (OSError, ValueError, KeyError, TypeError):
            return None
