"""Checkpoints that are whole or not there, and the logs of a run that was interrupted."""

from __future__ import annotations

import csv
import errno
import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from scfm._paths import atomic, check_regular, check_room

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["WholeCheckpoints", "curves", "epoch_keeper", "keepers", "loggers", "newest"]

STEP = re.compile(r"=\d{1,18}$", re.ASCII)
"""How names of checkpoints end."""
MOST = 300
"""Characters of the reason of a library."""
NEWEST, BEST = "newest", "best"
POINTS = 200
"""Points of a curve that a card keeps."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, which it takes when it is on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises
        ------
        OSError
            If there is no room; the checkpoints before it are as they were.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        n_bytes = sum(tensor.nbytes for tensor in _tensors(checkpoint))
        check_room(path.parent, n_bytes)
        with atomic(path) as work, work.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch hides what the system said
                if "writ" not in str(error):
                    raise
                raise OSError(errno.ENOSPC, "No space left on device") from error

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        """Read a checkpoint as plain data.

        Raises
        ------
        ValueError
            If it is cut off, or holds more than data, or is a pipe or a device.
        """
        check_regular(Path(path))
        try:
            return super().load_checkpoint(path, *args, **options | {"weights_only": True})
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "no message")[:MOST]
            msg = (
                f"{path} was refused ({type(error).__name__}: {reason}): it is cut off, or holds more than data. Remove it, and "
                "the run goes on from the checkpoint before it, or starts anew."
            )
            raise ValueError(msg) from error


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def keepers(folder: Path, every: int, judged: Sequence[str]) -> list[Callback]:
    """Keep the newest checkpoint and, where there are cells that judge, the best by the first set of them."""
    newest = ModelCheckpoint(folder, f"{NEWEST}-{{step}}", save_top_k=1, every_n_train_steps=every)
    if not judged:
        return [newest]
    best = ModelCheckpoint(folder, f"{BEST}-{{step}}", monitor=f"{judged[0]}/loss", mode="min", save_top_k=1)
    return [newest, best]


def epoch_keeper(folder: Path) -> Callback:
    """Keep the checkpoint of the last epoch, when everything else of it is done."""
    return ModelCheckpoint(folder, f"{NEWEST}-{{step}}", save_top_k=1, every_n_epochs=1, save_on_train_epoch_end=True)


def newest(folder: Path) -> Path | None:
    """The checkpoint from which a run goes on, if there is one."""
    found = sorted((path for path in folder.glob(f"{NEWEST}-*.ckpt") if STEP.search(path.stem)), key=_step)
    return found[-1] if found else None


def _step(path: Path) -> int:
    return int(path.stem.rpartition("=")[2])


def loggers(folder: Path, checkpoint: Path | None) -> list[Logger]:
    """A table and a log for TensorBoard, anew for each start of a run."""
    start = f"from-{0 if checkpoint is None else _step(checkpoint):08d}"
    shutil.rmtree(folder / start, ignore_errors=True)
    return [CSVLogger(folder, "", start), TensorBoardLogger(folder, "", start)]


def curves(folder: Path) -> dict[str, list[list[float]]]:
    """Step and value of what was logged; of steps that were repeated after an interruption, the last."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("from-[0-9]*/metrics.csv")):
        first = int(path.parent.name.removeprefix("from-"))
        for curve in found.values():
            for step in [step for step in curve if step >= first]:
                del curve[step]
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = int(row["step"])
                for name, text in row.items():
                    if text and name not in ("step", "epoch") and math.isfinite(value := float(text)):
                        found.setdefault(name, {})[step] = value
    return {
        name: [[step, float(f"{value:.6g}")] for step, value in _thinned(curve)]
        for name, curve in sorted(found.items())
    }


def _thinned(curve: dict[int, float]) -> list[tuple[int, float]]:
    points = sorted(curve.items())
    every = -(-len(points) // POINTS)
    return [*points[: len(points) - 1 : every], *points[-1:]] if points else []
