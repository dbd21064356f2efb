"""What a model is trained for: a loss of the hidden states of a batch, with the heads that it needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from scfm._types import TokenBatch
    from scfm.model import FoundationModel

__all__ = ["IGNORED", "Objective", "Outputs", "Term", "TrainingBatch"]

IGNORED = -100
"""Target of a token that is not predicted."""


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The sequences of one step, and what the objectives need to know of them."""

    batch: TokenBatch
    """Sequences as the network reads them, some tokens masked; ``rows`` number the cells of the step, so that views of
    one cell share a number; ``tags`` are the number of the view."""
    targets: NDArray[np.int64]
    """Token that was masked or replaced, or left but is to be predicted; :data:`IGNORED` elsewhere. Shape ``(n_tokens,)``."""
    labels: NDArray[np.int64] | None = None
    """Code of the cell type of each sequence, −1 for unknown, shape ``(n_sequences,)``; ``None`` without labels."""
    sources: NDArray[np.int64] | None = None
    """Number of the source of each sequence, shape ``(n_sequences,)``; ``None`` if nobody asks."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the network made of a batch."""

    network: nn.Module
    hidden: Tensor
    """Last hidden state of each token, shape ``(n_tokens, d)``."""
    pooled: Tensor
    """Embedding of each sequence by the pooling of the model, shape ``(n_sequences, d)``."""
    embed: Callable[[nn.Module, TokenBatch], Tensor] | None = None
    """Embeds sequences by another network likewise."""


@dataclass(frozen=True, slots=True)
class Term:
    """The loss of one objective in one batch, not yet averaged, so that batches and processes can be added exactly."""

    total: Tensor
    """Sum over what was predicted, a scalar; of :meth:`Objective.count` things."""
    metrics: dict[str, Tensor]
    """Further figures for the log, sums likewise, as ``{"accuracy": tensor(31)}``; without gradient."""


class Objective(nn.Module, ABC):
    """A loss with its heads; several are added up by their weights.

    Heads are made by :meth:`build`, when the sizes of the model are known.
    """

    n_views: ClassVar[int] = 1
    """Views of a cell that the loss compares."""
    changes_views: ClassVar[bool] = False
    """Whether the views are to differ in depth and genes, unless the run says otherwise."""
    masks: ClassVar[bool] = False
    """Whether the loss reads masked tokens."""

    @abstractmethod
    def build(self, model: FoundationModel, network: nn.Module, cell_types: Sequence[str] = ()) -> None:
        """Make the heads for the sizes of a model.

        Parameters
        ----------
        model
            Card and vocabulary; its ``tensors`` are those that training starts from, empty for new weights.
        network
            Holds the weights.
        cell_types
            Names of the codes in :attr:`TrainingBatch.labels`.
        """

    @abstractmethod
    def count(self, batch: TrainingBatch) -> int:
        """How much the loss predicts in a batch, known before the network has run; 0 adds nothing to the loss.

        The total of a step is divided by the sum of these over its batches and over all processes.
        """

    @abstractmethod
    def forward(self, outputs: Outputs, batch: TrainingBatch) -> Term:
        """Loss of a batch."""

    def published_tensors(self) -> dict[str, Tensor]:
        """Heads that the trained model keeps, by published name; none by default."""
        return {}

    def state(self) -> dict[str, Any]:
        """What the card says of the objective: its class and arguments."""
        return {"name": type(self).__name__}
