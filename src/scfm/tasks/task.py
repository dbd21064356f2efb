"""Base class of tasks: an edit of the sequences, a forward pass and a sink."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch, TokenBlock
    from scfm.run.engine import Forward, Sink
    from scfm.tasks.score_rows import ScoreRows

__all__ = ["Resumable", "SupportsForward", "Task"]


class SupportsForward(Protocol):
    """Recipe of a model with a forward pass."""

    def forward(self, network: torch.nn.Module, batch: TokenBatch, options: Any) -> Tensor:
        """Compute a batch: a vector per sequence, or per token with ``pooling="gene"``."""


class Task(ABC):
    """What is computed for each cell; ``scfm.run.run`` handles batches, memory, devices and progress.

    Parameters
    ----------
    sink
        Receives the results.
    """

    done: str = "embedded"
    """What has been done to the cells, for the report."""
    block_rows: int | None = None
    """Largest number of cells of a block; ``None``: that of the settings."""
    batch_tokens: int | None = None
    """Token budget of a batch; ``None``: that of the device."""
    empty_rows: str | None = None
    """What rows of cells without genes hold, for the warning; ``None``: as in an embedding."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def edit(self, block: TokenBlock) -> Iterable[TokenBlock]:
        """Yield the sequences to compute; by default one per cell, as encoded.

        A task with several sequences per cell yields them in blocks, lazily, and sets ``rows`` and, for its sink, ``tags``.
        """
        return (block,)

    @abstractmethod
    def make_forward(self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Forward:
        """Return the forward pass on a device, from a batch to what the sink takes; called once per device."""

    def shrink(self, batch: TokenBatch) -> bool:
        """Lower the memory that the task itself needs for a batch; ``False`` if only a smaller batch helps."""
        return False


class Resumable(Task):
    """A task whose results can be put aside between two blocks, so that another process goes on from there."""

    rows: ScoreRows | None = None
    """Results of single cells, where there are any beside sums."""

    @abstractmethod
    def sums(self) -> dict[str, NDArray[Any]]:
        """What has been added up over the cells so far, by name; not copied."""

    @abstractmethod
    def restore(self, sums: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what :meth:`sums` gave in another process; called before :meth:`make_forward`."""
