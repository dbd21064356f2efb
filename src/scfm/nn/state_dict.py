"""Compare the names and shapes of a published state dict, and copy it into the parameters of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn

__all__ = ["Shapes", "check_layers", "compare_names", "compare_shapes", "copy_into", "weight_and_bias"]

Shapes = dict[str, tuple[int, ...]]
"""Shape of each tensor by published name."""

_N_NAMED = 5


def check_layers(shapes: Mapping[str, object], n_layers: int) -> None:
    """Refuse a config that claims more layers than there are tensors, before names are listed for all of them."""
    if n_layers > len(shapes):
        msg = f"The model config says {n_layers:,} layers, but the state dict holds {len(shapes)} tensors."
        raise ValueError(msg)


def compare_names(found: Mapping[str, object], required: Iterable[str], optional: Iterable[str], what: str) -> None:
    """Raise a ValueError if names are missing or unexpected."""
    required, names = list(required), set(found.keys())
    missing = [name for name in required if name not in names]
    unexpected = sorted(names.difference(required, optional))
    found_wrong = {"missing": missing, "unexpected": unexpected}
    if parts := [f"{len(names)} {word}: {_some(names)}" for word, names in found_wrong.items() if names]:
        msg = f"The state dict does not fit {what}. {'. '.join(parts)}."
        raise ValueError(msg)


def compare_shapes(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a ValueError if a tensor has another shape."""
    wrong = [
        f"{name} is {shape}, expected {expected[name]}" for name, shape in shapes.items() if shape != expected[name]
    ]
    if wrong:
        msg = f"{len(wrong)} tensors do not fit the model config: {_some(wrong, '; ')}."
        raise ValueError(msg)


def copy_into(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy each tensor into the target of its name; a ValueError names those of another shape."""
    wrong = []
    with torch.no_grad():
        for name, target in targets.items():
            tensor = tensors[name]
            if tensor.shape == target.shape and tensor.is_floating_point():
                target.copy_(tensor)
            else:
                wrong.append(f"{name} is {_describe(tensor)}, expected {tuple(target.shape)}")
    if wrong:
        msg = f"{len(wrong)} tensors do not fit the model config: {_some(wrong, '; ')}."
        raise ValueError(msg)


def weight_and_bias(name: str, module: nn.Linear | nn.LayerNorm) -> dict[str, Tensor]:
    """The two parameters of a layer, without gradients, by published name."""
    return {f"{name}.weight": module.weight.detach(), f"{name}.bias": module.bias.detach()}


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}" if tensor.is_floating_point() else f"{tuple(tensor.shape)} of {tensor.dtype}"


def _some(names: list[str], separator: str = ", ") -> str:
    more = [f"and {len(names) - _N_NAMED} more"] if len(names) > _N_NAMED else []
    return separator.join(names[:_N_NAMED] + more)
