"""Where results of batches go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.run.engine import RunStats

__all__ = ["ArraySink", "GeneMeansSink"]


class ArraySink:
    """One row per cell, in the order of the source; NaN for cells that never came.

    Parameters
    ----------
    n_obs, n_features
        Shape of the array, which is float32.
    """

    def __init__(self, n_obs: int, n_features: int) -> None:
        self.values: NDArray[np.float32] = np.full((n_obs, n_features), np.nan, dtype=np.float32)

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Store one vector per cell, shape ``(n_cells, n_features)``."""
        self.values[batch.rows] = output.float().cpu().numpy()

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Nothing is held back."""


class GeneMeansSink:
    """Mean of the hidden states of each gene over cells, or over the cells of each group.

    Parameters
    ----------
    column_tokens
        Token of each column of the source, −1 for none.
    n_features
        Features of a hidden state.
    groups
        Group of each cell of the source, −1 for none; one group of all cells by default.
    n_groups
        Number of groups.
    """

    def __init__(
        self,
        column_tokens: NDArray[np.int32],
        n_features: int,
        groups: NDArray[np.int64] | None = None,
        n_groups: int = 1,
    ) -> None:
        from scfm.nn import GeneMeans

        self._tokens, self._columns = np.unique(column_tokens, return_inverse=True)
        self._known = column_tokens >= 0
        self._groups, self._n_groups = groups, n_groups
        self._means = GeneMeans(n_groups * len(self._tokens), n_features)

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Add hidden states of shape ``(n_tokens, n_features)``."""
        import torch

        place = np.minimum(np.searchsorted(self._tokens, batch.tokens), len(self._tokens) - 1)
        used = self._tokens[place] == batch.tokens
        if self._groups is not None:
            group = np.repeat(self._groups[batch.rows], batch.lengths)
            used &= group >= 0
            place = place + group * len(self._tokens)
        at = torch.from_numpy(np.flatnonzero(used))
        self._means.add(output[at.to(output.device)], torch.from_numpy(place[used]))

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Nothing is held back."""

    def values(self) -> NDArray[np.float32]:
        """Means by column, ``(n_columns, n_groups, n_features)``; NaN where it has no token or was never seen."""
        means = self._means.means()[0].numpy().reshape(self._n_groups, len(self._tokens), -1)
        values = means.transpose(1, 0, 2)[self._columns]
        values[~self._known] = np.nan
        return values
