"""Folders of adapters in the layout of peft, which peft reads, too."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfm._paths import atomic, check_new, read_json
from scfm._text import some
from scfm.train.adapters import (
    LoRA,
    adapter_tensors,
    add_adapters,
    load_adapter_tensors,
    lora_of,
    published_linears,
)
from scfm.weights.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEADS, LORA_A, POOLER, adapter_scale, plain_name
from scfm.weights.tensors import open_tensors, save_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

__all__ = ["load_adapters", "save_adapters"]

logger = logging.getLogger("scfm")


def save_adapters(network: nn.Module, folder: str | Path, *, base: str | Path | None = None) -> Path:
    """Write the adapters of a network as peft does: ``adapter_model.safetensors`` and ``adapter_config.json``.

    They fit the published network, also in peft and transformers.

    Parameters
    ----------
    network
        A network with adapters, of :func:`scfm.train.adapters.add_adapters`.
    folder
        Folder to write, which must not exist or be empty.
    base
        Folder with the published weights that were adapted, noted for readers.

    Returns
    -------
    ``folder``.

    Raises
    ------
    ValueError
        If the network has no adapters, or a weight is not finite.
    FileExistsError, OSError
        If the folder holds something, or cannot be written.

    Examples
    --------
    >>> import scfm, tempfile
    >>> from scfm.train import LoRA
    >>> from scfm.train.adapter_files import load_adapters, save_adapters
    >>> from scfm.train.adapters import add_adapters
    >>> network, other = (scfm.model.load("scfm-mini").training_network() for _ in range(2))
    >>> add_adapters(network, LoRA(rank=2))
    >>> folder = save_adapters(network, tempfile.mkdtemp() + "/adapters")
    >>> load_adapters(other, folder)
    LoRA(rank=2, alpha=16.0, dropout=0.0, targets=('query', 'value'))
    """
    folder, lora, names = Path(folder), lora_of(network), published_linears(network)
    check_new(folder)
    adapted = "|".join(_pattern(names[target]) for target in lora.targets)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None if base is None else str(base),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": rf"(.*\.)?({adapted})",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with atomic(folder) as work:
        work.mkdir()
        (work / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        save_tensors(adapter_tensors(network), work / ADAPTER_WEIGHTS[0])
    return folder


def load_adapters(network: nn.Module, folder: str | Path) -> LoRA:
    """Add the adapters of a folder of peft to a network, in place, to train them further or to merge them.

    Parameters
    ----------
    network
        A network of :meth:`~scfm.model.recipe.Recipe.training_network`, of the published weights that were adapted.
    folder
        Folder with ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``.bin``), of :func:`save_adapters` or
        of peft. A head that was trained with the adapters is left out.

    Returns
    -------
    Which adapters they are.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If they are no adapters of linear layers of this network, or not all of one rank and scale.
    ImportError, TypeError
        As of :func:`scfm.train.adapters.add_adapters`.
    """
    folder = Path(folder)
    config = read_json(folder / ADAPTER_CONFIG)
    found = [folder / name for name in ADAPTER_WEIGHTS if (folder / name).exists()]
    if not found:
        msg = f"{folder} holds no adapters; expected {' or '.join(ADAPTER_WEIGHTS)}."
        raise FileNotFoundError(msg)
    file = open_tensors(found[0])
    heads = [name for name in file if plain_name(name).startswith((*HEADS, POOLER))]
    if heads:
        logger.info("left out the head in %s: %s", folder, some(heads))
    tensors = {name: file[name] for name in file if name not in heads}
    lora = _lora(config, [plain_name(name) for name in tensors], published_linears(network), folder)
    add_adapters(network, lora)
    load_adapter_tensors(network, tensors)
    return lora


def _lora(config: Mapping[str, Any], names: Iterable[str], linears: Mapping[str, str], folder: Path) -> LoRA:
    """Which adapters a config and the names of tensors describe."""
    layers = {re.sub(r"\.\d+\.", ".{}.", name.removesuffix(LORA_A), count=1) for name in names}
    targets = tuple(target for target, name in linears.items() if name in layers)
    if not targets:
        msg = f"{folder} holds no adapters of the layers of this network: {some(names)}; expected such as {linears['query']}."
        raise ValueError(msg)
    rank: Any = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        msg = f"{folder / ADAPTER_CONFIG} says r={rank!r}; a rank of at least 1 is expected."
        raise ValueError(msg)
    alpha = adapter_scale(config, rank) * rank
    return LoRA(rank=rank, alpha=alpha, dropout=config.get("lora_dropout") or 0.0, targets=targets)


def _pattern(name: str) -> str:
    """A name as a regular expression for any layer, as peft finds it with or without a head around the network."""
    return re.escape(name.removeprefix("bert.")).replace(r"\{\}", r"\d+")
