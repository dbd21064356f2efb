"""Log-likelihoods of cells under a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from scfm.run import ArraySink
from scfm.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.run.engine import Forward

__all__ = ["Scorer", "Scores"]


class Scorer(Protocol):
    """Computes log-likelihoods of the cells of a batch."""

    def __call__(self, network: torch.nn.Module, batch: TokenBatch) -> Tensor:
        """Log-likelihoods of counts and of genes, shape ``(n_cells, 2)``."""


class SupportsScoring(Protocol):
    """Recipe of a model that computes log-likelihoods."""

    def scorer(self, options: Any, device: torch.device, dtype: torch.dtype) -> Scorer:
        """Return the function that computes log-likelihoods."""


class Scores(Task):
    """Mean log-likelihoods of the counts and of the genes of each cell; :attr:`values` has shape ``(n_obs, 2)``.

    Parameters
    ----------
    recipe, options
        The model, and the options of the run.
    n_obs
        Number of cells of the source.
    """

    empty_rows = "NaN"

    def __init__(self, recipe: SupportsScoring, options: Any, n_obs: int) -> None:
        sink = ArraySink(n_obs, 2)
        self.values = sink.values
        super().__init__(sink)
        self._recipe, self._options = recipe, options

    def make_forward(self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Forward:
        """Forward pass through the layers and the heads of the model."""
        scorer = self._recipe.scorer(self._options, device, dtype)
        return lambda batch: scorer(network, batch)
