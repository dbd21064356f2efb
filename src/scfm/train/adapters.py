"""Low-rank adapters (LoRA, Hu et al. 2021) of the linear layers of a network, by peft.

Our layers project queries, keys and values by one matrix, published ones by three. One adapter of the fused matrix does
exactly what one for each part does: with ``A`` those of the parts stacked, and ``B`` block-diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from math import inf
from typing import TYPE_CHECKING, Any, cast

from scfm._checks import is_int, is_number
from scfm._compat import quiet_imports
from scfm._package import pip_install
from scfm._text import some
from scfm.weights.adapters import LORA_A, LORA_B, peft_name, plain_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

__all__ = ["LoRA", "adapter_tensors", "add_adapters", "load_adapter_tensors", "lora_of", "merge_adapters"]

FUSED = "qkv"
TARGETS = {
    "query": (FUSED, 0),
    "key": (FUSED, 1),
    "value": (FUSED, 2),
    "output": ("out", 0),
    "up": ("up", 0),
    "down": ("down", 0),
}
"""Module of a layer that holds the weights of a target, and which part of its rows they are."""
ADAPTER = "default"
"""What peft calls an adapter without a name."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters: to each target, ``alpha / rank · B A`` is added, and ``A`` and ``B`` alone are trained.

    Parameters
    ----------
    rank
        Rows of ``A`` and columns of ``B``.
    alpha
        Scale of the product, times ``rank``.
    dropout
        Share of the inputs of ``A`` that are set to 0 in training. Query, key and value have them in common.
    targets
        Linear layers of each layer that are adapted: ``"query"``, ``"key"``, ``"value"`` and ``"output"`` of the attention,
        ``"up"`` and ``"down"`` of the feed-forward block. Kept in this order.

    Raises
    ------
    TypeError
        If ``targets`` is no tuple or list.
    ValueError
        If a number is out of range, or a target is not known.

    Examples
    --------
    >>> from scfm.train import LoRA
    >>> LoRA(rank=4, targets=("value", "query"))
    LoRA(rank=4, alpha=16.0, dropout=0.0, targets=('query', 'value'))
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        given: object = self.targets
        if not isinstance(given, tuple | list):
            msg = f"targets must be a tuple of {some(TARGETS, len(TARGETS))}; got {given!r}."
            raise TypeError(msg)
        unknown = [target for target in given if target not in TARGETS]
        if unknown or not given:
            found = f"{unknown[0]!r} is not known" if unknown else "targets is empty"
            msg = f"{found}: adapters are for {some(TARGETS, len(TARGETS))}."
            raise ValueError(msg)
        if not is_int(self.rank) or self.rank < 1:
            msg = f"rank must be a whole number of at least 1, got {self.rank!r}."
            raise ValueError(msg)
        if not is_number(self.alpha) or not 0 < self.alpha < inf:
            msg = f"alpha must be a positive number, got {self.alpha!r}."
            raise ValueError(msg)
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            msg = f"dropout must be at least 0 and less than 1, got {self.dropout!r}."
            raise ValueError(msg)
        object.__setattr__(self, "targets", tuple(target for target in TARGETS if target in given))

    @property
    def fused(self) -> tuple[str, ...]:
        """Targets that are parts of one matrix."""
        return tuple(target for target in self.targets if TARGETS[target][0] == FUSED)

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules of a layer that get an adapter."""
        return tuple(dict.fromkeys(TARGETS[target][0] for target in self.targets))


def add_adapters(network: nn.Module, lora: LoRA) -> None:
    """Add adapters to all layers of a network, in place; nothing else of it is trained from then on.

    ``B`` is 0 at first, so the network computes what it did before. Query, key and value are adapted through the matrix
    that holds all three, by an adapter of as many times the rank as there are parts; elements of its ``B`` that separate
    adapters do not have are 0 and stay so, whatever the optimiser.

    Parameters
    ----------
    network
        A network of :meth:`~scfm.model.recipe.Recipe.training_network`.
    lora
        Which adapters.

    Raises
    ------
    ImportError
        If peft is not installed.
    TypeError
        If the network does not say which linear layers it has.
    ValueError
        If it has adapters already, or no layers.

    Examples
    --------
    >>> import scfm
    >>> from scfm.train import LoRA
    >>> from scfm.train.adapters import adapter_tensors, add_adapters
    >>> network = scfm.model.load("scfm-mini").training_network()
    >>> add_adapters(network, LoRA(rank=4))
    >>> sum(tensor.numel() for tensor in adapter_tensors(network).values())
    4096
    """
    if find_spec("peft") is None:
        msg = f"Adapters need the package peft: {pip_install('train')}."
        raise ImportError(msg)
    layers = _layers(network)
    if hasattr(network, "lora"):
        msg = "The network has adapters already; merge_adapters(network) puts them into its weights."
        raise ValueError(msg)
    if not layers:
        msg = "The network has no layers that adapters could be added to."
        raise ValueError(msg)
    with quiet_imports():  # peft imports torchao where it is
        from peft import LoraConfig, inject_adapter_in_model

    # the scale that peft computes is that of a part
    n = len(lora.fused)
    patterns = {"rank_pattern": {FUSED: n * lora.rank}, "alpha_pattern": {FUSED: n * lora.alpha}} if n else {}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=cast("int", lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=rf"layers\.\d+\.({'|'.join(lora.modules)})",
        **cast("Any", patterns),
    )
    inject_adapter_in_model(config, network)
    cast("Any", network).lora = lora
    if n:
        for layer in layers:
            layer.qkv.lora_B[ADAPTER] = _block_diagonal(layer.qkv.lora_B[ADAPTER], lora)


def merge_adapters(network: nn.Module) -> None:
    """Add the adapters of a network to its weights, in place: its layers are plain linear layers again, still frozen.

    Raises
    ------
    ValueError
        If the network has no adapters, or a weight would not be finite.

    Examples
    --------
    >>> import scfm
    >>> from scfm.train import LoRA
    >>> from scfm.train.adapters import add_adapters, merge_adapters
    >>> network = scfm.model.load("scfm-mini").training_network()
    >>> add_adapters(network, LoRA())
    >>> merge_adapters(network)
    >>> network.layers[0].qkv
    Linear(in_features=128, out_features=384, bias=True)
    """
    lora = lora_of(network)
    for layer in _layers(network):
        for name in lora.modules:
            adapted = getattr(layer, name)
            adapted.merge(safe_merge=True)
            setattr(layer, name, adapted.get_base_layer())
    del network.lora, network.peft_config


def lora_of(network: nn.Module) -> LoRA:
    """Which adapters a network has; a ValueError if it has none."""
    lora: LoRA | None = getattr(network, "lora", None)
    if lora is None:
        msg = "The network has no adapters; add_adapters(network, LoRA(…)) adds them."
        raise ValueError(msg)
    return lora


def adapter_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights of the adapters, on the CPU, by the names that peft gives them in the published network.

    Raises
    ------
    ValueError
        If the network has no adapters.

    Examples
    --------
    >>> import scfm
    >>> from scfm.train import LoRA
    >>> from scfm.train.adapters import adapter_tensors, add_adapters
    >>> network = scfm.model.load("scfm-mini").training_network()
    >>> add_adapters(network, LoRA(targets=("query",)))
    >>> next(iter(adapter_tensors(network)))
    'base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight'
    """
    return {peft_name(name): part.cpu().clone().contiguous() for name, part in _parts(network).items()}


def load_adapter_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy weights into the adapters of a network.

    Parameters
    ----------
    network
        A network with adapters, of :func:`add_adapters`.
    tensors
        Weights as of :func:`adapter_tensors`, or as peft writes them for the published network, with or without a head.

    Raises
    ------
    ValueError
        If names are missing or unexpected, or a tensor has another shape, for want of the same rank; nothing is changed then.
    """
    import torch

    from scfm.nn.state_dict import compare_names

    lora, parts = lora_of(network), _parts(network)
    given = {plain_name(name): tensor for name, tensor in tensors.items()}
    if len(given) != len(tensors):
        msg = "The tensors hold several adapters of one layer; give those of one adapter."
        raise ValueError(msg)
    compare_names(given, parts, (), f"adapters of {len(_layers(network))} layers for {', '.join(lora.targets)}")
    wrong = [
        f"{name} is {tuple(given[name].shape)}, expected {tuple(part.shape)}"
        for name, part in parts.items()
        if given[name].shape != part.shape
    ]
    if wrong:
        msg = f"The tensors do not fit adapters of rank {lora.rank} in this network: {some(wrong, separator='; ')}."
        raise ValueError(msg)
    with torch.no_grad():
        for name, part in parts.items():
            part.copy_(given[name])


def published_linears(network: nn.Module) -> Mapping[str, str]:
    """Published names of the targets in the layer ``{}`` of a network; a TypeError if it has none."""
    found: Mapping[str, str] | None = getattr(network, "published_linears", None)
    if found is None:
        msg = (
            f"{type(network).__name__} does not say which linear layers it has (published_linears): adapters are for the "
            "networks of Geneformer, scCello and TranscriptFormer, and those derived from them."
        )
        raise TypeError(msg)
    return found


def _layers(network: nn.Module) -> list[Any]:
    published_linears(network)
    return list(cast("Any", network).layers)


def _parts(network: nn.Module) -> dict[str, Tensor]:
    """What is trained of the adapters by plain name, sharing memory."""
    lora, names = lora_of(network), published_linears(network)
    found = {}
    for number, layer in enumerate(_layers(network)):
        for target in lora.targets:
            module = getattr(layer, TARGETS[target][0])
            a, b = module.lora_A[ADAPTER].weight.detach(), module.lora_B[ADAPTER].weight.detach()
            if target in lora.fused:
                rows, columns = _block(lora, target, len(b))
                a, b = a[columns], b[rows, columns]
            name = names[target].format(number)
            found[f"{name}{LORA_A}"], found[f"{name}{LORA_B}"] = a, b
    return found


def _block(lora: LoRA, target: str, n_rows: int) -> tuple[slice, slice]:
    """Rows and columns of a part in the ``B`` of the fused matrix; the columns are its rows in ``A``."""
    d, part, at = n_rows // 3, TARGETS[target][1], lora.fused.index(target)
    return slice(part * d, (part + 1) * d), slice(at * lora.rank, (at + 1) * lora.rank)


def _block_diagonal(linear: nn.Linear, lora: LoRA) -> nn.Linear:
    """A layer with the same weights that multiplies by the blocks of the parts alone."""
    import torch

    from scfm.nn.linear import MaskedLinear

    mask = torch.zeros_like(linear.weight, requires_grad=False)
    for target in lora.fused:
        mask[_block(lora, target, len(mask))] = 1
    return MaskedLinear(linear, mask)
