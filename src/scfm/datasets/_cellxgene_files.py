"""Files of CELLxGENE Discover: checked before anything is fetched, fetched side by side, marked when they are whole."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pandas as pd

from scfm._compat import bar_hidden
from scfm._lock import hold
from scfm._paths import read_json, replace
from scfm._settings import settings
from scfm.datasets._cellxgene_catalogue import COLUMNS, HOSTS, UUID, catalogue, table_of
from scfm.weights.download import RemoteFile, download

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["checked_rows", "fetch_all", "is_done", "make_room"]


def checked_rows(datasets: pd.DataFrame | Sequence[str] | str) -> dict[str, dict[str, Any]]:
    """Checked rows of the catalogue by dataset; those of ids are not known offline, their version is ``None`` then."""
    ids = (
        [datasets]
        if isinstance(datasets, str)
        else list(datasets.index if isinstance(datasets, pd.DataFrame) else datasets)
    )
    for name in ids:
        if not (isinstance(name, str) and UUID.fullmatch(name)):
            msg = f"{name!r} is no dataset id; expected one of the index of list_datasets, as '01234567-89ab-cdef-0123-456789abcdef'."
            raise ValueError(msg)
    if isinstance(datasets, pd.DataFrame):
        table = datasets
        missing = [column for column in COLUMNS if column not in table]
        if missing:
            msg = f"The table lacks the columns {missing}; pass rows of list_datasets, or a list of dataset ids."
            raise ValueError(msg)
    elif settings.offline or not ids:
        return {name: {"version": None} for name in ids}
    else:
        table = _looked_up(ids)
    rows: dict[str, dict[str, Any]]
    rows = json.loads(table.loc[~table.index.duplicated(), COLUMNS].to_json(orient="index"))
    for name, row in rows.items():
        _check_row(name, row)
    return rows


def _looked_up(ids: list[str]) -> pd.DataFrame:
    table = table_of(catalogue()[0])
    unknown = [name for name in ids if name not in table.index]
    if unknown:
        msg = (
            f"The catalogue of CELLxGENE has no dataset {', '.join(unknown)}: it is withdrawn, or the id is that of a version "
            "or a collection. Take ids from list_datasets(primary=False)."
        )
        raise ValueError(msg)
    return table.loc[ids]


def _check_row(name: str, row: dict[str, Any]) -> None:
    url, version, size = row["url"], row["version"], row["bytes"]
    kinds = isinstance(url, str) and isinstance(version, str) and isinstance(size, int | float | None)
    if not kinds or not UUID.fullmatch(version):
        msg = f"{name}: url={url!r}, version={version!r}, bytes={size!r}; expected what list_datasets gives."
        raise ValueError(msg)
    for address in (url, settings.cellxgene_endpoint):
        RemoteFile(address)  # which refuses what is no address, or has a password
    parts, home = urlsplit(url), urlsplit(settings.cellxgene_endpoint)
    official = parts.scheme == "https" and (parts.hostname or "").endswith(HOSTS) and parts.port in (None, 443)
    if not official and parts[:2] != home[:2]:
        msg = (
            f"{name} is at {parts.scheme}://{parts.netloc}, which is not asked; expected https on cziscience.com, or "
            f"{home.scheme}://{home.netloc} of scfm.settings.cellxgene_endpoint. For a mirror, set that."
        )
        raise ValueError(msg)


def is_done(target: Path, version: str | None) -> bool:
    try:
        found = read_json(target.with_suffix(".json")).get("version")
    except (OSError, ValueError):
        return False
    return target.is_file() and version in (None, found)


def make_room(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Make the folder, and find out before the long work whether all of it fits."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{folder} cannot be made ({error.strerror}): choose another folder."
        raise type(error)(error.errno, msg) from error
    needed = sum(int(row["bytes"] or 0) - _received(folder, name, row) for name, row in rows.items())
    free = shutil.disk_usage(folder).free
    if needed > free:
        msg = f"{folder} has {free:,} bytes free, and {needed:,} more are needed: fetch fewer datasets, or into another folder."
        raise OSError(errno.ENOSPC, msg)


def _work(folder: Path, name: str, row: dict[str, Any]) -> Path:
    """Where a file is until it is whole; another version has another place, so they never mix."""
    return folder / f".{name}.{row['version']}.h5ad"


def _received(folder: Path, name: str, row: dict[str, Any]) -> int:
    with suppress(OSError):
        return _work(folder, name, row).with_suffix(".h5ad.part").stat().st_size
    return 0


def fetch_all(
    folder: Path, rows: dict[str, dict[str, Any]], workers: int, progress: bool | None
) -> dict[str, Exception]:
    """Fetch files in threads of their own; the errors of those that failed."""
    from tqdm.auto import tqdm

    failed: dict[str, Exception] = {}
    finished: dict[str, int] = {}
    jobs, ended = iter(list(rows.items())), SimpleQueue[None]()

    def work() -> None:
        for name, row in jobs:
            try:
                finished[name] = _fetch_one(folder, name, row)
            except Exception as error:  # noqa: BLE001  (it is raised by the caller, with those of the others)
                failed[name] = error
        ended.put(None)

    total = sum(int(row["bytes"] or 0) for row in rows.values()) or None
    style: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "disable": bar_hidden(progress)}
    with tqdm(total=total, desc=f"fetch {len(rows)} datasets", **style) as bar:
        waiting = min(workers, len(rows))
        try:
            for _ in range(waiting):  # an executor would have the end of the program wait for its threads
                threading.Thread(target=work, name="scfm-cellxgene", daemon=True).start()
            while waiting:  # an interrupted `join` takes a running thread for an ended one, in Python before 3.13
                with suppress(Empty):
                    ended.get(timeout=0.1)
                    waiting -= 1
                if not bar.disable:
                    here = sum(finished.get(name) or _received(folder, name, row) for name, row in rows.items())
                    bar.update(here - bar.n)
        finally:
            for _ in jobs:  # after Ctrl-C none of them is begun; those that run end with the program, or as they are
                pass
    return {name: failed[name] for name in rows if name in failed}


def _fetch_one(folder: Path, name: str, row: dict[str, Any]) -> int:
    """Fetch a file, put it into its place and the marker beside it; its size."""
    target, marker, work = folder / f"{name}.h5ad", folder / f"{name}.json", _work(folder, name, row)
    note = work.with_suffix(".json")
    with hold(folder / f".{name}.lock"):
        if note.exists() and target.exists() and not work.exists():
            replace(note, marker)  # an earlier call was stopped between the two
        if not is_done(target, row["version"]):
            _check_replaceable(target, marker)
            digest = download(RemoteFile(row["url"], hosts=HOSTS), work, offline=settings.offline, progress=False)
            size = work.stat().st_size
            if row["bytes"] not in (None, size):
                work.unlink()
                msg = f"{row['url']} has {size:,} bytes, and {int(row['bytes']):,} in the catalogue: call list_datasets and fetch again."
                raise ValueError(msg)
            text = json.dumps({"dataset_id": name, **row, "bytes": size, "sha256": digest}, indent=2)
            note.write_text(text + "\n", encoding="utf-8")
            replace(work, target)
            replace(note, marker)
        for path in folder.glob(f".{name}.*.*"):  # what is left of this and earlier versions
            path.unlink(missing_ok=True)
        return target.stat().st_size


def _check_replaceable(target: Path, marker: Path) -> None:
    """Refuse to replace a file that is not as it was fetched: it may hold results."""
    if not target.exists():
        return
    with suppress(OSError, ValueError):
        if read_json(marker).get("bytes") == target.stat().st_size:
            return
    msg = f"{target} is not as scfm has fetched it, and another version is asked for: move it away, and fetch again."
    raise FileExistsError(msg)
