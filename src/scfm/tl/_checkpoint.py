"""How far a run over the cells of a file has got: on disk, so that the same call goes on from there."""

from __future__ import annotations

import json
import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from zipfile import BadZipFile

import numpy as np

from scfm._lock import hold
from scfm._paths import atomic, check_new, check_room, check_writable, read_json, room_beside
from scfm.run.store import COUNTED, MAX_PLAN_BYTES
from scfm.tl._identity import differences, identity_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.model.session import Session
    from scfm.run import RunStats
    from scfm.tasks import Resumable

__all__ = ["Checkpoint"]

logger = logging.getLogger("scfm")

FORMAT = 1
RUN_FILE, SUMS_FILE, ROWS_FILE, LOCK_FILE = "run.json", "sums.npz", "rows_{:08d}.npz", "lock"
PLACE = "place"
"""Entry of the file of sums: the first cell that is not in them, the number of files of rows, and the counters of the run."""
SECONDS = 30.0
"""Between two checkpoints, at least."""
TIMES_LONGER = 20
"""How much longer than the writing of the last checkpoint the time to the next one is."""


class Checkpoint:
    """Sums over cells, and results of single cells, in a folder; a context manager, which removes the folder in the end.

    What was added up is written after a block of cells, when :data:`SECONDS` have gone by. It replaces what is there in one
    step. Results of single cells are added in files of their own, which count when the sums say so.

    Parameters
    ----------
    folder
        The folder; ``None``: nothing is written.
    data
        What is read.
    out
        Where the results go.

    Raises
    ------
    ValueError
        If ``data`` is no path, or the folder is where cells or results are.
    FileExistsError
        If there is something else than a checkpoint.
    OSError
        If the folder cannot be written.
    """

    def __init__(self, folder: str | Path | None, data: object, out: str | Path | None) -> None:
        self._held = ExitStack()
        self._folder = None if folder is None else Path(folder).expanduser()
        if self._folder is None:
            return
        if not isinstance(data, Path):
            msg = (
                "checkpoint= is for the path of a file, of which another process can tell that it is the same. Write the "
                f"{type(data).__name__} to a file, and pass its path with out=."
            )
            raise ValueError(msg)
        self._data, place = data, self._folder.resolve()
        for path in (data, Path(str(out)).expanduser()):
            if path.resolve() in (place, *place.parents):
                msg = f"checkpoint={str(self._folder)!r} is, or is inside of, {path}; choose another folder."
                raise ValueError(msg)
        if not self._folder.is_dir() or not any(self._folder.iterdir()):
            check_new(self._folder, overwrite=self._folder.is_dir(), replaces=lambda _: False)
        elif not (self._folder / RUN_FILE).exists():
            msg = f"{self._folder} is no checkpoint of scfm; choose another name."
            raise FileExistsError(msg)
        else:
            check_writable(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._held.close()
        if kind is None and self._folder is not None and self._folder.exists():
            with room_beside(self._folder) as room:
                self._folder.rename(room / self._folder.name)

    def run(
        self,
        session: Session,
        task: Resumable,
        parameters: Mapping[str, Any],
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> RunStats:
        """Compute a task for ranges of cells (all by default), from where an earlier run has got to; counters of both.

        ``parameters`` are what the results depend on beside the model and the cells.

        Raises
        ------
        FileExistsError
            If the earlier run was of other cells, another model or other parameters.
        ValueError
            If the checkpoint is damaged.
        RuntimeError
            If another process goes on with it.
        OSError
            If there is no room for it.
        """
        if self._folder is None:
            return session.run(task, spans)
        spans = [(0, session.source.n_obs)] if spans is None else spans
        self._open(self._folder, identity_of([self._data], session, parameters))
        saved = _Saving(self._folder, task, spans[-1][1])
        left = [(max(start, saved.stop), stop) for start, stop in spans if stop > saved.stop]
        n_done = sum(stop - start for start, stop in spans) - sum(stop - start for start, stop in left)
        if n_done:
            logger.info("going on with %s: %d cells are done", self._folder, n_done)
        before, task.sink = dict(saved.counted), saved
        stats = session.run(task, left, n_done)
        for name, count in before.items():
            setattr(stats, name, getattr(stats, name) + count)
        return stats

    def _open(self, folder: Path, identity: dict[str, Any]) -> None:
        """Make the folder, or find out whether it is of the same run; nobody else uses it from then on."""
        if not (folder / RUN_FILE).exists():
            try:
                with atomic(folder) as work:
                    work.mkdir()
                    (work / RUN_FILE).write_text(json.dumps({"format": FORMAT} | identity), encoding="utf-8")
            except OSError:
                if not (folder / RUN_FILE).exists():  # otherwise another process was first
                    raise
        try:
            self._held.enter_context(hold(folder / LOCK_FILE, 0))
        except TimeoutError as error:
            msg = f"Another process is going on with {folder}. Wait for it, or choose another folder."
            raise RuntimeError(msg) from error
        was = read_json(folder / RUN_FILE, MAX_PLAN_BYTES)
        if was.get("format") != FORMAT:
            msg = f"{folder} is of another version of scfm (format {was.get('format')}, here {FORMAT}); remove it."
            raise FileExistsError(msg)
        if was["source"] != identity["source"]:
            msg = (
                f"{folder} is of {self._data} as it was: {was['source'][0]}; now it is {identity['source'][0]}. Remove the "
                "checkpoint or choose another folder."
            )
            raise FileExistsError(msg)
        differing = differences(was["parameters"], identity["parameters"])
        if differing:
            msg = f"{folder} is of a run with other parameters ({', '.join(differing)}). Remove it or choose another folder."
            raise FileExistsError(msg)


class _Saving:
    """The sink of a task, which also writes what the task has found after blocks of cells."""

    def __init__(self, folder: Path, task: Resumable, last: int) -> None:
        self._folder, self._task, self._sink, self._last = folder, task, task.sink, last
        self.stop, self._n_files = 0, 0
        self.counted = dict.fromkeys(COUNTED, 0)
        """Counters of the run that is gone on with."""
        if (folder / SUMS_FILE).exists():
            self._restore()
        self._n_parts = 0 if task.rows is None else len(task.rows.parts)
        self._next = time.monotonic() + SECONDS

    def _restore(self) -> None:
        sums = _read(self._folder / SUMS_FILE)
        self.stop, self._n_files, *counts = sums.pop(PLACE).tolist()
        self.counted = dict(zip(COUNTED, counts, strict=True))
        self._task.restore(sums)
        for number in range(self._n_files):
            part = _read(self._folder / ROWS_FILE.format(number))
            assert self._task.rows is not None
            self._task.rows.append(part["cells"], part["genes"], part["values"][:, None])

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Pass on the output of a batch."""
        self._sink.write(batch, output)

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Write what there is if it is time, and after the last block."""
        self._sink.end_block(stop, stats)
        if stop < self._last and time.monotonic() < self._next:
            return
        began = time.monotonic()
        if self._task.rows is not None:
            entries = self._task.rows.since(self._n_parts)
            _write(
                self._folder / ROWS_FILE.format(self._n_files),
                dict(zip(("cells", "genes", "values"), entries, strict=True)),
            )
            self._n_files, self._n_parts = self._n_files + 1, len(self._task.rows.parts)
        counts = [before + getattr(stats, name) for name, before in self.counted.items()]
        _write(self._folder / SUMS_FILE, self._task.sums() | {PLACE: np.array([stop, self._n_files, *counts])})
        now = time.monotonic()
        self._next = now + max(SECONDS, TIMES_LONGER * (now - began))


def _write(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write arrays so that they are there as a whole, or what was there before."""
    check_room(path.parent, sum(array.nbytes for array in arrays.values()))
    with atomic(path, links=False) as work, work.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        msg = f"{path} is damaged ({error}). Remove {path.parent}, and the run starts anew."
        raise ValueError(msg) from error
