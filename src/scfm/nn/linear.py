"""Linear layers by the fastest way there is."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["linear"]

Activation = Literal["none", "relu", "gelu"]

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_ROWS = 256
_ONEDNN_DTYPES = (torch.float32, torch.bfloat16)
_ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> Tensor:
    """A linear layer and what follows it; where nothing is to be differentiated, it goes straight to oneDNN on the CPU.

    In float32 that is 13 to 25 % faster than MKL on a CPU whose AVX-512 units MKL does not use, in bfloat16 2 to 10 %
    faster than by way of ``F.linear`` (Zen 4, two threads, 512 to 4096 rows). For every number of rows it has not seen,
    oneDNN keeps memory for good (0.6 MB for 128 × 256 weights), so it gets multiples of 256 rows, and the rest goes to
    ``F.linear``.
    """
    whole = len(x) - len(x) % _ROWS
    if (
        x.dtype not in _ONEDNN_DTYPES
        or x.device.type != "cpu"
        or torch.is_grad_enabled()
        or not _HAS_ONEDNN
        or not whole
    ):
        return _ACTIVATIONS[activation](F.linear(x, weight, bias))
    head = torch.ops.mkldnn._linear_pointwise(x[:whole], weight, bias, activation, [], "none")
    if whole == len(x):
        return cast("Tensor", head)
    return torch.cat([head, _ACTIVATIONS[activation](F.linear(x[whole:], weight, bias))])
