"""Files that are read whole or written: every one appears in its place in one step, when it is complete."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "atomic",
    "check_new",
    "check_room",
    "check_writable",
    "is_full",
    "link_or_copy",
    "read_json",
    "replace",
    "reserve",
    "size_of",
]

MAX_JSON_BYTES = 1_000_000


def check_new(
    path: Path,
    *,
    overwrite: bool = False,
    hint: str = "remove it first",
    parents: bool = False,
    replaces: Callable[[Path], bool] | None = None,
) -> None:
    """Find out before the long work whether a file or folder can be written.

    Parameters
    ----------
    path
        Where it is to be. Of a link, where it leads.
    overwrite
        Whether it may be there already.
    hint
        What else can be done than to choose another name.
    parents
        Whether missing folders above it are going to be made.
    replaces
        For a folder that is going to be written: whether one that is there is of the same kind. No other folder is
        overwritten, unless it is empty. ``None``: a file is going to be written.

    Raises
    ------
    FileExistsError
        If it exists, even as a link that leads nowhere, and is not to be overwritten, or is something else than what is
        going to be written.
    FileNotFoundError
        If its folder does not exist.
    OSError
        As :func:`check_writable`.
    """
    there = path.exists() or path.is_symlink()
    if there and not overwrite:
        msg = f"{path} exists already; choose another name, or {hint}."
        raise FileExistsError(msg)
    if path.exists() and not _can_be_replaced(path, replaces):
        what = "a folder of something else" if path.is_dir() else "a file, and a folder is going to be written"
        msg = f"{path} is {what}, which is not overwritten; choose another name, or remove it first."
        raise FileExistsError(msg)
    folder = _place(path).absolute().parent
    if parents:
        folder = next(above for above in (folder, *folder.parents) if above.exists())
    if not folder.is_dir():
        msg = f"There is no folder {folder}; make it first."
        raise FileNotFoundError(msg)
    check_writable(folder)


def _can_be_replaced(path: Path, replaces: Callable[[Path], bool] | None) -> bool:
    if replaces is None or not path.is_dir():
        return replaces is None and not path.is_dir()
    return not any(path.iterdir()) or replaces(path)


def check_writable(folder: Path) -> None:
    """Raise an OSError if nothing can be written into a folder, which only trying tells on every file system."""
    try:
        Path(tempfile.mkdtemp(prefix=".scfm-", dir=folder)).rmdir()
    except OSError as error:
        msg = f"{folder} cannot be written ({error.strerror}): make it writable, or choose another place."
        raise type(error)(error.errno, msg) from error


def check_room(folder: Path, n_bytes: int) -> None:
    """Raise an OSError if a folder has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        msg = f"{folder} has {free:,} bytes free, and {n_bytes:,} are needed: make room there, or choose another place."
        raise OSError(errno.ENOSPC, msg)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk or a quota is full, or a file as large as it may be."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def reserve(path: Path, n_bytes: int) -> None:
    """Take the room that a file is going to grow by, where the system can do that; an OSError if there is none.

    HDF5 brings the process down when it runs out of room. What is not used it gives back when it closes the file.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), path.stat().st_size, n_bytes)
        except OSError as error:
            if is_full(error):
                raise


@contextmanager
def atomic(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a place beside ``path``; what the block puts there, a file or a folder, takes the place of ``path``.

    If the block fails, ``path`` is as it was; nothing else is left in either case.

    Parameters
    ----------
    path
        Where the file or folder is to be. As with a rename, a file or an empty folder there is replaced. A link stays one:
        what it leads to is replaced.
    overwrite
        Whether a folder that holds something is replaced, too. That takes two steps, but it is not lost on the way.

    Raises
    ------
    OSError
        If there is no room left, with a message that names ``path``; and whatever the block raises.
    """
    named, path = path, _place(path)
    folder = Path(tempfile.mkdtemp(prefix=".scfm-", dir=path.absolute().parent))
    work = folder / path.name
    try:
        yield work
        if overwrite and path.is_dir():
            _replace_folder(work, path)
        else:
            replace(work, path)
    except OSError as error:
        if not is_full(error):
            raise
        msg = f"{named} could not be written ({error.strerror}): make room there, or choose another place."
        raise OSError(error.errno, msg) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(path: Path) -> Path:
    """Where a link leads; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def replace(work: Path, path: Path) -> None:
    """Put what is complete into its place, on the same file system; for files that have a temporary name of their own."""
    work.replace(path)


def link_or_copy(source: Path, path: Path) -> None:
    """Hard-link a file that is never modified; copy it if the file system cannot link."""
    try:
        os.link(source.resolve(), path)
    except OSError:
        shutil.copyfile(source, path)


def _replace_folder(work: Path, path: Path) -> None:
    aside = Path(tempfile.mkdtemp(dir=work.parent)) / "replaced"
    try:
        path.rename(aside)
        replace(work, path)
    except BaseException:
        if not path.exists():
            aside.rename(path)
        raise


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object of a bounded size.

    Raises
    ------
    ValueError
        If the file is too large, no JSON, or no object.
    """
    size = path.stat().st_size
    if size > max_bytes:
        msg = f"{path} has {size:,} bytes; a config or card has at most {max_bytes:,}."
        raise ValueError(msg)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"{path} is no valid JSON: {error}. It may be cut off, or a web page saved in its place."
        raise ValueError(msg) from error
    if not isinstance(values, dict):
        msg = f"{path} holds a JSON {type(values).__name__}, expected an object."
        raise ValueError(msg)
    return values
