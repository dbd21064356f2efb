"""The form of a task: an edit of the sequences of cells, a forward pass, and where its results go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch
    from torch import Tensor

    from scfm._types import TokenBatch, TokenBlock
    from scfm.run import Sink

__all__ = ["Computes", "Task"]


class Computes(Protocol):
    """What a task asks of the recipe of a model."""

    def forward(self, network: torch.nn.Module, batch: TokenBatch, options: Any) -> Tensor:
        """Compute one batch: a vector a sequence, or a token for ``pooling="gene"``."""


class Task(ABC):
    """What is computed of cells; batches, memory, devices and progress are left to ``scfm.run.run``.

    Parameters
    ----------
    sink
        Takes the results.
    """

    done: str = "embedded"
    """What has been done to the cells, for the report."""
    block_rows: int | None = None
    """Most cells that are read at a time; ``None``: as in the settings."""
    batch_tokens: int | None = None
    """Token budget of a batch; ``None``: as the device has it."""
    empty_rows: str | None = None
    """What the rows of cells without genes are, for the warning; ``None``: as in an embedding."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def edit(self, block: TokenBlock) -> Iterable[TokenBlock]:
        """Make the sequences that are computed; by default those of the cells.

        A task that makes several of a cell gives them in blocks as they are needed, with ``rows``, and with ``tags`` by
        which its sink knows them.
        """
        return (block,)

    @abstractmethod
    def on(self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Callable[[TokenBatch], Tensor]:
        """Make what computes a batch, from its tokens to what the sink takes; called once a device."""

    def shrink(self, batch: TokenBatch) -> bool:
        """Compute less of a batch at a time, because memory ran out; ``False`` if all that helps is a smaller batch."""
        return False
