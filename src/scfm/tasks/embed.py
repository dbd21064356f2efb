"""Embeddings: the pooled output of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scfm.tasks.task import Task

if TYPE_CHECKING:
    import torch

    from scfm.run.engine import Forward, Sink
    from scfm.tasks.task import SupportsForward

__all__ = ["Embed"]


class Embed(Task):
    """The output of a model for each cell, or for each of its genes with ``pooling="gene"``.

    Parameters
    ----------
    recipe, options
        The model, and the options of the run.
    sink
        Receives the results.
    """

    def __init__(self, recipe: SupportsForward, options: Any, sink: Sink) -> None:
        super().__init__(sink)
        self._recipe, self._options = recipe, options

    def make_forward(self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Forward:
        """The forward pass of the model."""
        return lambda batch: self._recipe.forward(network, batch, self._options)
