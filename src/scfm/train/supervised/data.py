"""Steps of training and the cells that judge it, as a Lightning data module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from lightning import LightningDataModule

from scfm.batch import prefetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning import Trainer
    from numpy.typing import NDArray

    from scfm.train.supervised.inputs import Inputs, Part
    from scfm.train.supervised.split import Split

__all__ = ["SupervisedData"]

AHEAD = 4
"""Steps that are made ahead of the network."""


@dataclass(frozen=True)
class _Loader:
    """Steps of some cells, made in a thread; of each, a process takes its share."""

    inputs: Inputs
    steps: Callable[[], list[NDArray[np.int64]]]
    """Gives the cells of each step, anew for each epoch."""
    n_steps: int
    rank: int
    n_ranks: int

    def __iter__(self) -> Iterator[list[Part]]:
        return prefetch((self.inputs.parts(rows[self.rank :: self.n_ranks]) for rows in self.steps()), AHEAD)

    def __len__(self) -> int:
        return self.n_steps


class SupervisedData(LightningDataModule):
    """Cells of each part of a split.

    Which cells an epoch draws, and in which order, is decided by the seed and its number alone, so training can go on from
    a checkpoint with the same cells.

    Parameters
    ----------
    training, validation
        Where batches and targets come from; of genes, those to learn and those to judge by differ.
    split
        Positions of the cells.
    batch_size
        Cells of a step, over all processes.
    weights
        Of the cells of ``split.train``, by which they are drawn with replacement; each once an epoch by default.
    seed
        Decides the order.
    """

    def __init__(
        self,
        training: Inputs,
        validation: Inputs,
        split: Split,
        *,
        batch_size: int,
        weights: NDArray[np.float64] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._training, self._validation, self._split = training, validation, split
        self._batch_size, self._weights, self._seed = batch_size, weights, seed
        # by these names scvi's TrainRunner keeps the split
        self.train_idx, self.val_idx, self.test_idx = split.train, split.validation, split.test
        self.n_train, self.n_val = len(split.train), len(split.validation)

    @property
    def n_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.n_train // self._batch_size)

    def train_dataloader(self) -> _Loader:
        """Steps of an epoch, whichever the trainer is in."""
        trainer = self._its_trainer()
        smallest = self.n_train // self.n_steps
        if smallest < trainer.world_size:
            msg = f"batch_size={self._batch_size} makes steps of {smallest} cells, too few for {trainer.world_size} processes."
            raise ValueError(msg)
        return _Loader(self._training, self._drawn, self.n_steps, trainer.global_rank, trainer.world_size)

    def val_dataloader(self) -> _Loader | list[_Loader]:
        """The cells that judge, in order; none without any."""
        trainer = self._its_trainer()
        if not self.n_val:
            return []
        steps = np.array_split(self._split.validation, -(-self.n_val // max(self._batch_size, 64)))
        return _Loader(self._validation, lambda: steps, len(steps), trainer.global_rank, trainer.world_size)

    def _drawn(self) -> list[NDArray[np.int64]]:
        """Cells of each step of the epoch that the trainer has reached."""
        # by the step: the trainer counts the epoch later when it goes on from a checkpoint
        epoch = self._its_trainer().global_step // self.n_steps
        rng = np.random.default_rng((self._seed, epoch))
        cells = self._split.train
        if self._weights is None:
            drawn = rng.permutation(cells)
        else:
            drawn = rng.choice(cells, len(cells), p=self._weights / self._weights.sum())
        # steps of nearly the same size, so that the last one has cells for all processes
        return np.array_split(drawn, self.n_steps)

    def _its_trainer(self) -> Trainer:
        assert self.trainer is not None
        return self.trainer
