"""How much a cell's embedding changes when one of its genes is masked."""

from __future__ import annotations

import logging
from math import isqrt
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scfm.run.sinks import GeneStatesSink
from scfm.tasks.score_rows import ScoreRows
from scfm.tasks.task import SupportsForward, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray
    from scipy import sparse
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.run.engine import Forward

__all__ = ["MaskedGenes"]

logger = logging.getLogger("scfm")


class SupportsMasking(SupportsForward, Protocol):
    """Recipe of a model that can mask single tokens."""

    def masked_outputs(
        self,
        network: torch.nn.Module,
        batch: TokenBatch,
        positions: Sequence[Tensor],
        options: Any,
        *,
        max_tokens: int,
    ) -> list[Tensor]:
        """Embed one copy of a cell for each of its ``positions``, with the token there masked."""


class MaskedGenes(Task):
    """``1 − cos(z, z_g)`` of each gene ``g`` of a cell, with ``z`` its embedding and ``z_g`` that with the gene masked.

    Parameters
    ----------
    recipe, options
        The model, and the options of the run; its pooling is that of the embedding.
    column_tokens
        Token of each column of the source that is masked, −1 for columns that are left alone.
    max_tokens
        Tokens that go through the network together.
    """

    empty_rows = "without scores"

    def __init__(
        self, recipe: SupportsMasking, options: Any, column_tokens: NDArray[np.int32], max_tokens: int
    ) -> None:
        self._rows = ScoreRows(len(column_tokens))
        super().__init__(GeneStatesSink(column_tokens, self._rows))
        self._recipe, self._options, self._max_tokens = recipe, options, max_tokens
        self._tokens = np.unique(column_tokens[column_tokens >= 0])
        # a cell of n genes has n copies of n genes: this keeps a batch of cells as small as a batch of copies
        self.batch_tokens = isqrt(max_tokens)

    def make_forward(self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Forward:
        """Scores of the tokens of a batch, float32, shape ``(n_tokens, 1)``; 0 for tokens that are not masked."""
        return lambda batch: self._scores(network, batch)

    def shrink(self, batch: TokenBatch) -> bool:
        """Halve the number of copies computed together, down to one of the longest cell."""
        if self._max_tokens <= batch.lengths.max():
            return False
        self._max_tokens //= 2
        logger.warning("Out of memory: continuing with %d tokens at a time.", self._max_tokens)
        return True

    def scores(self, n_obs: int) -> sparse.csr_matrix:
        """All scores, float32, shape ``(n_obs, n_columns)``; zeros that were computed are stored."""
        return self._rows.matrix(n_obs)

    def _scores(self, network: torch.nn.Module, batch: TokenBatch) -> Tensor:
        import torch

        lengths = batch.lengths.tolist()
        used = torch.from_numpy(np.isin(batch.tokens, self._tokens)).split(lengths)
        positions = [cell.nonzero()[:, 0] for cell in used]
        whole = self._recipe.forward(network, batch, self._options)
        copies = self._recipe.masked_outputs(network, batch, positions, self._options, max_tokens=self._max_tokens)
        scores = torch.zeros(len(batch.tokens), 1)
        at = 0
        for length, places, z, masked in zip(lengths, positions, whole, copies, strict=True):
            # in float64: what is left of 1 - cos in float32 is mostly rounding
            cos = torch.cosine_similarity(masked.cpu().double(), z.cpu().double()[None])
            scores[at + places, 0] = (1 - cos).float()
            at += length
        return scores
