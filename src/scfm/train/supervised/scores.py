"""Scores of a trained head for the cells or genes of a data set."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from scfm.nn import States
from scfm.run.sinks import ArraySink, GeneMeansSink
from scfm.tasks import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm._types import TokenBatch, TokenBlock
    from scfm.model import FoundationModel
    from scfm.model.recipe import RunOptions
    from scfm.run.engine import Forward

__all__ = ["CellScores", "GeneProbabilities"]


class CellScores(Task):
    """Scores of all targets side by side for each cell, before softmax.

    Parameters
    ----------
    recipe, options
        The fine-tuned model.
    head
        Its head.
    n_obs, n_outputs
        Cells, and outputs of all targets together.
    """

    done = "predicted"
    empty_rows = "NaN"

    def __init__(
        self, recipe: FoundationModel, options: RunOptions, head: torch.nn.Module, n_obs: int, n_outputs: int
    ) -> None:
        self.array = ArraySink(n_obs, n_outputs)
        super().__init__(self.array)
        self._recipe, self._options, self._head = recipe, options, head
        self._without: list[NDArray[np.int64]] = []

    def edit(self, block: TokenBlock) -> tuple[TokenBlock]:
        """All cells; those without genes are noted."""
        self._without.append(block.row0 + np.flatnonzero(block.n_genes <= 0))
        return (block,)

    def values(self) -> NDArray[np.float32]:
        """Shape ``(n_obs, n_outputs)``; NaN for a cell without genes, of which a network may have read special tokens alone."""
        self.array.values[np.concatenate(self._without)] = np.nan
        return self.array.values

    def make_forward(self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Forward:
        """The network, and a copy of the head in float32: embeddings are standardised by differences that bfloat16 lacks."""
        head = deepcopy(self._head).to(device).eval()

        def forward(batch: TokenBatch) -> torch.Tensor:
            hidden, pooled = self._recipe.training_outputs(network, batch, self._options)
            scores = head(States(hidden.float(), pooled.float(), batch.lengths))
            return torch.cat(list(scores.values()), dim=1)

        return forward


class GeneProbabilities(Task):
    """Mean over cells of the probabilities of the classes of each gene.

    Parameters
    ----------
    recipe, options, head
        As for :class:`CellScores`.
    column_tokens
        Token of each gene of the data, −1 for none.
    n_classes
        Number of classes.
    """

    done = "predicted genes in"
    empty_rows = "not counted"

    def __init__(
        self,
        recipe: FoundationModel,
        options: RunOptions,
        head: torch.nn.Module,
        column_tokens: NDArray[np.int32],
        n_classes: int,
    ) -> None:
        self.means = GeneMeansSink(column_tokens, n_classes)
        super().__init__(self.means)
        self._recipe, self._options, self._head = recipe, options, head

    def make_forward(self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Forward:
        """The network, and a copy of the head in float32: embeddings are standardised by differences that bfloat16 lacks."""
        head = deepcopy(self._head).to(device).eval()

        def forward(batch: TokenBatch) -> torch.Tensor:
            hidden, pooled = self._recipe.training_outputs(network, batch, self._options)
            (scores,) = head(States(hidden.float(), pooled.float(), batch.lengths)).values()
            return cast("torch.Tensor", scores.softmax(dim=1))

        return forward
