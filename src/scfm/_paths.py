"""Files that are read whole or written: every one appears in its place in one step, when it is complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["atomic", "check_new", "link_or_copy", "read_json", "replace"]

MAX_JSON_BYTES = 1_000_000


def check_new(path: Path, *, overwrite: bool = False, hint: str = "remove it first", parents: bool = False) -> None:
    """Find out before the long work whether a file or folder can be written.

    Parameters
    ----------
    path
        Where it is to be.
    overwrite
        Whether it may be there already.
    hint
        What else can be done than to choose another name.
    parents
        Whether missing folders above it are going to be made.

    Raises
    ------
    FileExistsError
        If it exists, even as a link that leads nowhere, and is not to be overwritten.
    FileNotFoundError
        If its folder does not exist.
    """
    if not overwrite and (path.exists() or path.is_symlink()):
        msg = f"{path} exists already; choose another name, or {hint}."
        raise FileExistsError(msg)
    if not parents and not path.absolute().parent.is_dir():
        msg = f"There is no folder {path.absolute().parent}; make it first."
        raise FileNotFoundError(msg)


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
    """
    path = path.resolve() if path.is_symlink() else path
    folder = Path(tempfile.mkdtemp(prefix=".scfm-", dir=path.absolute().parent))
    work = folder / path.name
    try:
        yield work
        if overwrite and path.is_dir():
            _replace_folder(work, path)
        else:
            replace(work, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
