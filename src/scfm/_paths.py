"""Files that are read whole or written: every one appears in its place in one step, when it is complete."""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfm._lock import NO_LOCKS
from scfm._settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
    "room_beside",
    "settle",
    "size_of",
    "sync",
    "tree",
]

logger = logging.getLogger("scfm")

PREFIX = ".scfm-"
"""Of the names of folders in which processes work beside a path."""
NEW, OLD, LOCK = "new", "old", "lock"
"""In such a folder: what takes its place, what it replaces, and what shows that somebody is at work."""
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
        tempfile.TemporaryFile(dir=folder).close()
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

    It is on the disk before it does, unless ``settings.fsync`` is off. If the block fails, ``path`` is as it was; nothing
    else is left in either case. What a killed process left is removed by the next call in the same folder.

    Parameters
    ----------
    path
        Where the file or folder is to be. As with a rename, a file or an empty folder there is replaced. A link stays one:
        what it leads to is replaced.
    overwrite
        Whether a folder that holds something is replaced, too. Where the system can exchange names that is one step. Elsewhere
        it takes two, and :func:`settle` completes them if the process is killed between them.

    Raises
    ------
    OSError
        If there is no room left, with a message that names ``path``; and whatever the block raises.
    """
    named, path = path, _place(path)
    try:
        with _folder_beside(path) as folder:
            work = folder / NEW / path.name
            yield work
            if overwrite and path.is_dir():
                _replace_folder(work, path, folder / OLD / path.name)
            else:
                replace(work, path)
    except OSError as error:
        if not is_full(error):
            raise
        msg = f"{named} could not be written ({error.strerror}): make room there, or choose another place."
        raise OSError(error.errno, msg) from error


@contextmanager
def room_beside(path: Path) -> Iterator[Path]:
    """Give an empty folder beside ``path``, which is removed in the end, by the next call there if this process is killed."""
    with _folder_beside(path) as folder:
        yield folder / NEW


def _place(path: Path) -> Path:
    """Where a link leads; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Make a folder for the work on a path, locked as long as this process works there."""
    settle(path.absolute().parent)
    held = ExitStack()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=path.absolute().parent))
        try:
            held.enter_context(_locked(folder))
        except OSError as error:
            if isinstance(error, TimeoutError) or not folder.exists():
                continue  # another process took it for left behind
            if error.errno not in NO_LOCKS:
                _discard(folder)
                raise
        if folder.exists():
            break
    with held:
        try:
            (folder / NEW).mkdir()
            (folder / OLD).mkdir()
            yield folder
        finally:
            _discard(folder)


def _discard(folder: Path) -> None:
    """Remove a folder of work, its lock last, so that one that is killed meanwhile is still known for left behind."""
    for path in (folder / NEW, folder / OLD, folder):
        shutil.rmtree(path, ignore_errors=True)


def _locked(folder: Path) -> Any:
    from filelock import FileLock

    return FileLock(folder / LOCK).acquire(timeout=0)


def settle(parent: Path) -> None:
    """Complete the replacements that killed processes had begun in a folder, and remove what else they left there."""
    for folder in parent.glob(f"{PREFIX}*"):
        with ExitStack() as held, suppress(OSError):
            if not (folder / LOCK).exists():
                folder.rmdir()  # of a process that was killed before it had the lock
                continue
            try:
                held.enter_context(_locked(folder))
                alone = True
            except TimeoutError:
                continue
            except OSError:
                alone = False
            for old in (folder / OLD).glob("*"):
                work, path = folder / NEW / old.name, parent / old.name
                if work.exists() and not path.exists():
                    replace(work, path)
                    logger.info("completed the replacement of %s, which an earlier process had begun", path)
            if alone:
                _discard(folder)


def replace(work: Path, path: Path) -> None:
    """Put what is complete into its place, on the same file system, when it is on the disk; for files with a temporary name."""
    sync(tree(work))
    _rename(work, path)
    sync([path.absolute().parent])


def _replace_folder(work: Path, path: Path, old: Path) -> None:
    sync(tree(work))
    if not _exchange(work, path):
        try:
            _rename(path, old)
            _rename(work, path)
        except BaseException:
            if old.exists() and not path.exists():
                _rename(old, path)
            raise
    sync([path.absolute().parent])


def _rename(work: Path, path: Path) -> None:
    work.replace(path)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; false, and nothing done, where the system or the file system cannot."""
    names = os.fsencode(one), os.fsencode(other)
    library: Any = ctypes.CDLL(None) if sys.platform in ("linux", "darwin") else None
    if hasattr(library, "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return not library.renameat2(here, names[0], here, names[1], exchange)
    swap = 2  # RENAME_SWAP
    return hasattr(library, "renamex_np") and not library.renamex_np(*names, swap)


def tree(path: Path) -> Iterator[Path]:
    """A file, or all files and folders of a folder, each folder after what is in it."""
    if path.is_dir():
        for folder, _, names in os.walk(path, topdown=False):
            yield from (Path(folder, name) for name in names)
            yield Path(folder)
    else:
        yield path


def sync(paths: Iterable[Path]) -> None:
    """Have the content of files and the names in folders on the disk, unless ``settings.fsync`` is off."""
    for path in paths if settings.fsync else ():
        _fsync(path)


def _fsync(path: Path) -> None:
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not is_folder or error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
            errno.EBADF,
        ):  # as some network disks answer
            raise
    finally:
        os.close(handle)


def link_or_copy(source: Path, path: Path) -> None:
    """Hard-link a file that is never modified; copy it if the file system cannot link."""
    try:
        os.link(source.resolve(), path)
    except OSError:
        shutil.copyfile(source, path)


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
