"""State dicts of fine-tuned BERT models: the network, the head that was trained on it, and low-rank adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scfm.weights.adapters import HEADS, LORA_A, LORA_B, POOLER, adapter_scale, plain_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["Checkpoint", "read_checkpoint"]

CLASSIFIER = "classifier.weight"
REPLACED = ".original_module."
"""Marks tensors that peft trained a copy of, which is stored, too."""


@dataclass(frozen=True)
class Checkpoint:
    """A published state dict, split into network and head."""

    network: Mapping[str, Tensor]
    """Tensors of the network by published name, adapters merged into them."""
    head: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of the head that was trained on it."""
    labels: Mapping[str, list[str]] = field(default_factory=dict)
    """Labels of each output of the head, in order, by the name of its layer."""
    is_whole: bool = True
    """Whether ``network`` is the whole file, unchanged."""


def read_checkpoint(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], adapter: Mapping[str, Any] | None
) -> Checkpoint:
    """Split the state dict of a pretrained or fine-tuned model into network and head, and merge adapters.

    Parameters
    ----------
    tensors
        Tensors by the names in the file. A pretrained model is returned as it is; none of its tensors is read.
    config
        Content of ``config.json``, whose ``id2label`` names the labels.
    adapter
        Content of the ``adapter_config.json`` of peft, if there is one.

    Raises
    ------
    ValueError
        If there are adapters that cannot be merged.
    """
    named = {plain_name(name): name for name in tensors if REPLACED not in name}
    of_head = [name for name in named if name.startswith(HEADS)]
    if not of_head and adapter is None and all(plain == given for plain, given in named.items()):
        return Checkpoint(tensors)
    found = _merged({name: tensors[given] for name, given in named.items()}, adapter)
    head = {name: found.pop(name) for name in list(found) if of_head and name.startswith((*HEADS, POOLER))}
    return Checkpoint(found, head, _labels(head, config), is_whole=False)


def _merged(tensors: dict[str, Tensor], adapter: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Add the product of each pair of LoRA matrices to its weight, in float32."""
    layers = [name.removesuffix(LORA_A) for name in tensors if name.endswith(LORA_A)]
    if layers and adapter is None:
        msg = (
            "The weights contain adapters (LoRA), but the adapter_config.json with their scale (lora_alpha) is missing."
        )
        raise ValueError(msg)
    if not layers or adapter is None:
        return tensors
    for layer in layers:
        names = f"{layer}.weight", f"{layer}{LORA_B}", f"{layer}{LORA_A}"
        missing = [name for name in names if name not in tensors]
        if missing:
            msg = f"The adapters do not fit the weights: {layer} has no {missing[0].removeprefix(layer).lstrip('.')}."
            raise ValueError(msg)
        weight, up, down = (tensors.pop(name).float() for name in names)
        if not 0 < len(down) == up.shape[-1] or (len(up), down.shape[-1]) != tuple(weight.shape):
            shapes = " and ".join(str(tuple(one.shape)) for one in (up, down))
            msg = f"The adapters of {layer}, {shapes}, do not fit its weight, {tuple(weight.shape)}."
            raise ValueError(msg)
        tensors[names[0]] = weight + adapter_scale(adapter, len(down)) * (up @ down)
    return tensors


def _labels(head: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Labels by layer of the head: those that the config names for the classifier, numbers for others."""
    named = config.get("id2label")
    named = named if isinstance(named, dict) else {}
    found = {}
    for name, tensor in head.items():
        if name.endswith(".weight") and not name.startswith(POOLER):
            numbers = [str(number) for number in range(len(tensor))]
            fits = name == CLASSIFIER and named.keys() == set(numbers)
            found[name.removesuffix(".weight")] = [str(named[number]) for number in numbers] if fits else numbers
    return found
