"""The steps of training and the cells that judge it, as a Lightning data module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from lightning import LightningDataModule

from scfm.batch import prefetch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from scfm.train.objective import TrainingBatch
    from scfm.train.steps import Steps

__all__ = ["CellData"]

AHEAD = 4
"""Steps that are made ahead of the network."""


@dataclass(frozen=True)
class _Ahead:
    """Steps from one on, made in a thread."""

    steps: Steps
    first: int
    last: int
    rank: int
    n_ranks: int

    def __iter__(self) -> Iterator[list[TrainingBatch]]:
        return prefetch(
            (self.steps.batches(step, self.rank, self.n_ranks) for step in range(self.first, self.last)), AHEAD
        )


class _Kept:
    """Batches that are kept, as a loader: Lightning would take a list for several of them."""

    def __init__(self, items: list[list[TrainingBatch]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[list[TrainingBatch]]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class CellData(LightningDataModule):
    """Steps from the one on that the trainer has reached, and held-out cells.

    Parameters
    ----------
    steps
        Makes the batches of a step.
    n_steps
        Steps of the run.
    held_out
        Cells that judge the model, by a name for the log: of each file their positions.
    """

    def __init__(self, steps: Steps, n_steps: int, held_out: Mapping[str, Mapping[int, NDArray[np.int64]]]) -> None:
        super().__init__()
        self._steps, self._n_steps, self._held_out = steps, n_steps, held_out
        self.judged = list(held_out)
        """Names of the sets of held-out cells."""
        self._batches: list[list[list[TrainingBatch]]] | None = None

    def train_dataloader(self) -> _Ahead:
        """Steps that are left."""
        trainer = self.trainer
        assert trainer is not None
        return _Ahead(self._steps, trainer.global_step, self._n_steps, trainer.global_rank, trainer.world_size)

    def teardown(self, stage: str) -> None:
        """Stop reading ahead."""
        self._steps.draws.close()

    def val_dataloader(self) -> list[_Kept]:
        """Batches of the held-out cells, which are kept; processes share them."""
        trainer = self.trainer
        assert trainer is not None
        if self._batches is None:
            self._batches = [
                [
                    self._steps.judged(file, part)
                    for file, rows in cells.items()
                    for part in np.array_split(rows, -(-len(rows) // self._steps.batch_cells))
                ]
                for cells in self._held_out.values()
            ]
        # without a batch, Lightning leaves a process out, and the others would wait for its losses
        return [_Kept(part[trainer.global_rank :: trainer.world_size] or [[]]) for part in self._batches]
