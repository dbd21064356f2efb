"""Names of files: several at once, collections, and addresses."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

__all__ = ["expand", "is_url", "paths_of"]

COLLECTION = "annbatch-preshuffled"
"""Encoding of a folder of zarr stores that annbatch made."""


def is_url(name: object) -> bool:
    """Whether a name is an address for fsspec, such as ``s3://bucket/cells.zarr``."""
    return isinstance(name, str) and "://" in name


def expand(data: Any) -> Any:
    """Write out what stands for several files.

    Parameters
    ----------
    data
        A path, an address, a pattern with ``*``, ``?`` or ``[...]``, a collection of annbatch, a list of these, or
        anything else.

    Returns
    -------
    A list of paths and addresses if there are several, one of them if there is one; anything else as it is.

    Raises
    ------
    FileNotFoundError
        If no file fits a pattern.
    ValueError
        If a list is empty.
    """
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        found = [path for item in data for path in _expanded(item)]
        if not found:
            msg = "An empty list of files holds no cells."
            raise ValueError(msg)
    elif isinstance(data, str | PathLike):
        found = _expanded(data)
    else:
        return data
    return found[0] if len(found) == 1 else found


def paths_of(files: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[str | Path]:
    """Write out what stands for files, one or several, as a list; errors as of :func:`expand`."""
    found = expand([files] if isinstance(files, str | PathLike) else list(files))
    return found if isinstance(found, list) else [found]


def _expanded(name: Any) -> list[str | Path]:
    if not isinstance(name, str | PathLike):
        msg = f"A list of files holds paths; found {type(name).__name__}."
        raise TypeError(msg)
    if isinstance(name, str) and is_url(name):
        return [name]
    path = Path(name).expanduser()
    if path.exists():
        return list(_datasets(path)) or [path]
    if not glob.has_magic(str(path)):
        return [path]
    found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  (an absolute pattern is none to pathlib)
    if not found:
        msg = f"No file fits the pattern {str(path)!r}."
        raise FileNotFoundError(msg)
    return [inner for file in found for inner in _expanded(file)]


def _datasets(path: Path) -> list[Path]:
    """The stores of a collection of annbatch, in order; none if it is something else."""
    file = path / "zarr.json"
    if (
        not file.is_file()
        or json.loads(file.read_text(encoding="utf-8")).get("attributes", {}).get("encoding-type") != COLLECTION
    ):
        return []
    return sorted(path.glob("dataset_*"), key=lambda store: int(store.name.rpartition("_")[2]))
