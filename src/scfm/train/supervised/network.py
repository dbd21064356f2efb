"""A network with a head, as training and prediction run it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from scfm.nn import States

if TYPE_CHECKING:
    from scfm._types import TokenBatch
    from scfm.model import FoundationModel
    from scfm.model.recipe import RunOptions

__all__ = ["SupervisedNetwork", "VectorNetwork"]


class SupervisedNetwork(nn.Module):
    """The layers of a foundation model and a head on them.

    Parameters
    ----------
    recipe, options
        The model, and how its cells are pooled.
    network
        Its layers.
    head
        From their states to the scores of each target.
    """

    def __init__(self, recipe: FoundationModel, options: RunOptions, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head
        self._recipe, self._options = recipe, options

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def is_frozen(self) -> bool:
        """Whether nothing of the layers is trained."""
        return not any(parameter.requires_grad for parameter in self.network.parameters())

    def train(self, mode: bool = True) -> Self:
        """Set dropout; layers that are all frozen keep theirs off, so their states are those of an embedding."""
        super().train(mode)
        if self.is_frozen:
            self.network.eval()
        return self

    def states(self, batch: TokenBatch) -> States:
        """States of the tokens, and embeddings."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            hidden, pooled = self._recipe.training_outputs(self.network, batch, self._options)
        return States(hidden, pooled, batch.lengths)

    def forward(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Scores of each target."""
        return self.head(self.states(batch))


class VectorNetwork(nn.Module):
    """A head alone, on embeddings that were computed before.

    Parameters
    ----------
    head
        From embeddings to the scores of each target.
    n_features
        Width of an embedding.
    """

    def __init__(self, head: nn.Module, n_features: int) -> None:
        super().__init__()
        self.head, self.n_features = head, n_features

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, vectors: Any) -> dict[str, Tensor]:
        """Scores of each target for vectors of shape ``(n, d)``."""
        values = torch.as_tensor(vectors, dtype=torch.float32).to(self.device)
        return self.head(States(values, values, [1] * len(values)))
