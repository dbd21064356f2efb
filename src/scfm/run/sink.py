"""Where results of batches go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch

__all__ = ["ArraySink", "GeneMeansSink", "Sink"]


class Sink(Protocol):
    """Takes what the network returns for a batch."""

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Store the output of one batch; called once a batch, in any order of rows."""


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


class GeneMeansSink:
    """Mean over cells of the hidden states of each token.

    Parameters
    ----------
    vocab_size
        Number of tokens.
    n_features
        Features of a hidden state.
    """

    def __init__(self, vocab_size: int, n_features: int) -> None:
        from scfm.nn import GeneMeans

        self._means = GeneMeans(vocab_size, n_features)

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Add hidden states of shape ``(n_tokens, n_features)``."""
        import torch

        self._means.add(output, torch.from_numpy(batch.tokens))

    def values(self, column_tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Mean of the token of each column, NaN where it has none or was never seen; ``(n_columns, n_features)``."""
        means = self._means.means()[0].numpy()
        values = means[column_tokens]
        values[column_tokens < 0] = np.nan
        return values
