"""Copies between memory and an accelerator that the next batch does not wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scfm._types import TokenBatch

__all__ = ["HostCopy"]


class HostCopy:
    """The output of a batch, on its way to the memory of the host.

    A plain ``output.cpu()`` would wait for all that was started on the device since. Here the copy to page-locked memory
    is put in line at once, and :meth:`wait` waits for no more than that. Only vectors of cells are copied, not the far
    larger states of all tokens.

    Parameters
    ----------
    batch
        The batch.
    output
        What was computed of it: a tensor on any device, or what the sink takes else.
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
    def is_there(self) -> bool:
        """Whether there is nothing to wait for."""
        return self._copied is None

    def wait(self) -> Any:
        """The output, in the memory of the host if there was a copy."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._output
