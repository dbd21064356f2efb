"""Files of low-rank adapters (LoRA) as peft writes them: names of tensors, and the scale of their product."""

from __future__ import annotations

import re
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any

from scfm._checks import is_number

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "HEADS",
    "LORA_A",
    "LORA_B",
    "POOLER",
    "adapter_scale",
    "peft_name",
    "plain_name",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
HEADS = ("classifier.", "classification_heads.", "attention_pool.")
"""Prefixes of heads: classifiers of cells and genes, and Geneformer's multi-task models."""
POOLER = "bert.pooler."
"""Part of the head, if there is one."""
LORA_A, LORA_B = ".lora_A", ".lora_B"
"""How plain names of adapters end: of the matrix that is applied first, and of the other."""
RENAMED = (
    (r"^((module|_orig_mod|base_model\.model)\.)+", ""),
    (r"^(?=(embeddings|encoder|pooler)\.)", "bert."),
    (r"\.base_layer\.", "."),
    (r"\.modules_to_save(\.default)?\.", "."),
    (r"\.lora_([AB])(\.\w+)?\.weight$", r".lora_\1"),
)
"""Patterns and replacements that give names as in ``BertForMaskedLM``, without what DDP, torch.compile and peft add."""


def plain_name(name: str) -> str:
    """Name of a tensor without what DDP, torch.compile and peft add; an adapter ends in :data:`LORA_A` or :data:`LORA_B`.

    Examples
    --------
    >>> from scfm.weights.adapters import plain_name
    >>> plain_name("base_model.model.encoder.layer.0.output.dense.lora_A.weight")
    'bert.encoder.layer.0.output.dense.lora_A'
    """
    for pattern, written in RENAMED:
        name = re.sub(pattern, written, name)
    return name


def peft_name(name: str) -> str:
    """The plain name of an adapter as peft writes it, ``"base_model.model.….lora_A.weight"``."""
    return f"base_model.model.{name}.weight"


def adapter_scale(config: Mapping[str, Any], rank: int) -> float:
    """Factor of the product of two LoRA matrices.

    Parameters
    ----------
    config
        Content of ``adapter_config.json``.
    rank
        Inner dimension of the product.

    Raises
    ------
    ValueError
        If the adapters are not LoRA, or have more than a rank and one ``lora_alpha``.
    """
    other = [key for key in ("alpha_pattern", "fan_in_fan_out", "use_dora") if config.get(key)]
    alpha: Any = config.get("lora_alpha")
    if config.get("peft_type") != "LORA" or other or not is_number(alpha) or not isfinite(alpha):
        found = ", ".join(f"{key}={config.get(key)!r}" for key in ("peft_type", "lora_alpha", *other))
        msg = f"{ADAPTER_CONFIG} says {found}; adapters of peft_type 'LORA' with one lora_alpha are read, no others."
        raise ValueError(msg)
    return float(alpha) / (sqrt(rank) if config.get("use_rslora") else rank)
