"""Weights of fewer bits for inference: the linear layers of a network, by torchao and bitsandbytes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast, get_args

from scfm._compat import quiet_imports
from scfm._package import pip_install
from scfm._types import Quantization

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

__all__ = ["check_quantization", "quantize_network"]

DEVICES = {"int8": ("cpu", "cuda"), "int8_dynamic": ("cpu", "cuda"), "nf4": ("cuda",)}
PACKAGES = {"int8": "torchao", "int8_dynamic": "torchao", "nf4": "bitsandbytes"}
INSTALL = {"torchao": pip_install("quantize"), "bitsandbytes": "pip install bitsandbytes"}


def check_quantization(scheme: Quantization | None, devices: Sequence[torch.device]) -> None:
    """Find out before the long work whether a scheme can be used; ``None`` always can.

    Raises
    ------
    ValueError
        If the scheme is not known, or not for these devices.
    ImportError
        If the package that it takes is not installed.
    """
    if scheme is None:
        return
    if scheme not in DEVICES:
        known = ", ".join(map(repr, get_args(Quantization)))
        msg = f"quantize={scheme!r} is not known; use one of {known}, or None."
        raise ValueError(msg)
    if devices[0].type not in DEVICES[scheme]:
        msg = (
            f"quantize={scheme!r} is for devices of the kind {' and '.join(DEVICES[scheme])}, not {devices[0].type}; choose "
            "another device=, or leave it out."
        )
        raise ValueError(msg)
    if find_spec(PACKAGES[scheme]) is None:
        msg = f"quantize={scheme!r} needs the package {PACKAGES[scheme]}: {INSTALL[PACKAGES[scheme]]}."
        raise ImportError(msg)


def quantize_network(network: nn.Module, scheme: Quantization) -> None:
    """Quantise the linear layers of ``network.layers``, in place; embeddings, norms and heads stay as they are.

    Parameters
    ----------
    network
        A network on its device and of the dtype in which it computes.
    scheme
        ``"int8"``: weights of 8 bits with a scale for each row. ``"int8_dynamic"``: and inputs of 8 bits with a scale for
        each token. ``"nf4"``: weights of 4 bits with a scale for each 64 of them.

    Raises
    ------
    TypeError
        If the network has no layers to quantise.
    """
    layers = getattr(network, "layers", None)
    if layers is None:
        msg = f"quantize={scheme!r}: {type(network).__name__} has no layers whose weights could be quantised; leave it out."
        raise TypeError(msg)
    if scheme == "nf4":
        _to_nf4(layers)
        return
    with quiet_imports():
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    config = Int8WeightOnlyConfig() if scheme == "int8" else Int8DynamicActivationInt8WeightConfig()
    quantize_(cast("nn.Module", layers), config)


def _to_nf4(layers: Any) -> None:
    """Replace linear layers; bitsandbytes quantises a weight when it is moved to a device."""
    import bitsandbytes
    from torch import nn

    for parent in list(layers.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is nn.Linear:
                weight = linear.weight.data
                made = bitsandbytes.nn.LinearNF4(
                    linear.in_features, linear.out_features, compute_dtype=weight.dtype, device="meta"
                )
                made.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
                made.bias = linear.bias
                setattr(parent, name, made.to(weight.device).eval())
