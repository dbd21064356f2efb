"""A partially downloaded file, kept so that a later call can resume."""

from __future__ import annotations

import errno
import hashlib
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

from scfm._paths import read_json, replace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scfm.weights.transport import RemoteFile

__all__ = ["Content", "PartialFile", "disk_errors", "partial_path"]

NOTED = (("total", int | None), ("etag", str | None), ("modified", str | None))


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Add what to do to errors of writing into a folder."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "has no space left" if full else f"cannot be written ({error.strerror or error})"
        do = "free some" if full else "make it writable"
        msg = (
            f"{folder} {what}: {do}, or set SCFM_CACHE_DIR to another folder. Partial downloads are kept, and the same "
            "call resumes them."
        )
        raise OSError(error.errno, msg) from error


def partial_path(target: Path) -> Path:
    """Path of the partial file."""
    return target.with_name(f"{target.name}.part")


@dataclass(frozen=True)
class Content:
    """Size and validators that a server sends for a file."""

    total: int | None = None
    etag: str | None = None
    modified: str | None = None

    def validator(self) -> str | None:
        """Value for ``If-Range``; weak tags do not guarantee equal bytes."""
        return self.modified if self.etag is None or self.etag.startswith("W/") else self.etag

    def could_match(self, other: Content) -> bool:
        """Whether two answers may be about the same bytes."""
        if None not in (self.total, other.total) and self.total != other.total:
            return False
        if self.etag and other.etag:
            return self.etag == other.etag
        return not (self.modified and other.modified) or self.modified == other.modified


class PartialFile:
    """The bytes received so far, with a JSON file beside them that says what they belong to."""

    def __init__(self, remote: RemoteFile, target: Path) -> None:
        self.remote, self.target = remote, target
        self.path = partial_path(target)
        self.size = self.received = self.restarts = 0
        self.digest = hashlib.sha256()
        self._note = target.with_name(f"{target.name}.part.json")
        noted = self._read_note()
        self.content = noted or Content()
        with disk_errors(target.parent):
            # not buffered, so that written bytes survive a killed process
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
        """Whether all bytes were received; says nothing about the hash."""
        return self.size == self.content.total

    @property
    def resumable(self) -> bool:
        """Whether a later call can use the bytes received so far."""
        return self.whole or bool(self.conditions())

    def conditions(self) -> dict[str, str]:
        """Headers that request the missing bytes; none if a change of the file could not be detected."""
        validator, total = self.content.validator(), self.content.total
        provable = validator or self.remote.sha256
        if not provable or not 0 < self.size < (self.size + 1 if total is None else total):
            return {}
        return {"Range": f"bytes={self.size}-", **({"If-Range": validator} if validator else {})}

    def clear(self) -> None:
        """Discard the received bytes."""
        self.restarts += self.size > 0
        with disk_errors(self.path.parent):
            self._file.truncate(0)
        self.size, self.digest, self.content = 0, hashlib.sha256(), Content()

    def start(self, content: Content) -> None:
        """Start over with the first byte of a file."""
        self.clear()
        self.content = content
        with disk_errors(self.path.parent):
            self._note.write_text(json.dumps({"url": self.remote.url, **asdict(content)}), encoding="utf-8")

    def append(self, data: bytes) -> None:
        """Write and hash the next bytes."""
        view = memoryview(data)
        with disk_errors(self.path.parent):
            while view:
                written = self._file.write(view)
                self.digest.update(view[:written])
                self.size += written
                self.received += written
                view = view[written:]

    def move(self) -> None:
        """Move the file to its target."""
        with disk_errors(self.path.parent):
            self._file.close()
            replace(self.path, self.target)
            self._note.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the partial file."""
        self._file.close()
        with disk_errors(self.path.parent):
            self.path.unlink()
            self._note.unlink(missing_ok=True)

    def _read_note(self) -> Content | None:
        """Content that an earlier call recorded for this address."""
        try:
            note = read_json(self._note)
            if note.pop("url") != self.remote.url or not all(isinstance(note[name], kind) for name, kind in NOTED):
                return None
            return Content(**note)
        except (OSError, ValueError, KeyError, TypeError):
            return None
