"""Asynchronous copies from an accelerator to the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scfm._types import TokenBatch

__all__ = ["HostCopy"]


class HostCopy:
    """The output of a batch, on its way to host memory.

    ``output.cpu()`` would wait for everything queued on the device since. Here the copy to pinned memory is queued at
    once, and :meth:`wait` waits for that alone. Only vectors of cells are copied, not the far larger states of tokens.
    """

    def __init__(self, batch: TokenBatch, output: Any) -> None:
        import torch

        self.batch = batch
        self._output: Any = output
        self._copied: Any = None
        of_cells = isinstance(output, torch.Tensor) and len(output) == len(batch.rows)
        if of_cells and output.device.type == "cuda":
            self._output = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
            self._output.copy_(output, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(output.device))

    @property
    def is_ready(self) -> bool:
        """Whether no copy is under way."""
        return self._copied is None

    def wait(self) -> Any:
        """Return the output, in host memory if it was copied."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._output
