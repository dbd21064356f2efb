"""The names and shapes of a published ``BertForMaskedLM`` state dict, and how they map onto our modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn

    from .bert import BertConfig, BertEncoder, BertLayer
    from .heads import MaskedLMHead

__all__ = ["check_shapes", "published_keys"]

Shapes = dict[str, tuple[int, ...]]

_DECODER_WEIGHT = "cls.predictions.decoder.weight"
_BIASES = ("cls.predictions.bias", "cls.predictions.decoder.bias")
_WORDS = "bert.embeddings.word_embeddings.weight"
_N_NAMED = 5


def published_keys(config: BertConfig, *, head: bool = True) -> tuple[Shapes, Shapes]:
    """Names and shapes of a published state dict.

    Parameters
    ----------
    config
        Sizes; all ``config.n_layers`` layers belong to the state dict.
    head
        Whether the language-model head belongs to it.

    Returns
    -------
    required
        Tensors that must be there.
    optional
        Tensors that may be there. With ``head``, one of ``cls.predictions.bias`` and ``cls.predictions.decoder.bias``
        must be; they are two names of one tensor.
    """
    d, ffn, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    required: Shapes = {
        _WORDS: (vocab, d),
        "bert.embeddings.position_embeddings.weight": (config.max_positions, d),
        "bert.embeddings.token_type_embeddings.weight": (config.type_vocab_size, d),
    }
    optional: Shapes = {"bert.embeddings.position_ids": (1, config.max_positions)}

    def add(shapes: Shapes, name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    add(required, "bert.embeddings.LayerNorm", d)
    for i in range(config.n_layers):
        layer = f"bert.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            add(required, f"{layer}.attention.self.{part}", d, d)
        add(required, f"{layer}.attention.output.dense", d, d)
        add(required, f"{layer}.attention.output.LayerNorm", d)
        add(required, f"{layer}.intermediate.dense", ffn, d)
        add(required, f"{layer}.output.dense", d, ffn)
        add(required, f"{layer}.output.LayerNorm", d)
    add(optional, "bert.pooler.dense", d, d)
    if head:
        add(required, "cls.predictions.transform.dense", d, d)
        add(required, "cls.predictions.transform.LayerNorm", d)
        optional |= {_DECODER_WEIGHT: (vocab, d)} | dict.fromkeys(_BIASES, (vocab,))
    return required, optional


def check_names(tensors: Mapping[str, object], config: BertConfig, *, head: bool) -> None:
    """Raise a ValueError unless the names are exactly those of :func:`published_keys`; no tensor is read."""
    required, optional = published_keys(config, head=head)
    names = list(required)
    if head and not set(tensors.keys()).intersection(_BIASES):
        names.append(_BIASES[0])
    compare_names(tensors, names, optional, f"a BERT model of {config.n_layers} layers")


def check_shapes(shapes: Mapping[str, tuple[int, ...]], config: BertConfig, *, head: bool = True) -> None:
    """Compare all names and shapes of a state dict with a config, before anything is built.

    Parameters
    ----------
    shapes
        Shape of each tensor by published name.
    config
        Sizes.
    head
        As in :func:`published_keys`.

    Raises
    ------
    ValueError
        If names are missing or unexpected, or a tensor has another shape.
    """
    check_layers(shapes, config.n_layers)
    check_names(shapes, config, head=head)
    required, optional = published_keys(config, head=head)
    compare_shapes(shapes, required | optional)


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
    parts = [f"{len(names)} {word}: {_some(names)}" for word, names in _both(missing, unexpected) if names]
    if parts:
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


def encoder_targets(encoder: BertEncoder) -> dict[str, Tensor]:
    """The parameters of an encoder (or parts of them, sharing memory) by published name."""
    targets: dict[str, Tensor] = {
        _WORDS: encoder.word_embeddings.weight,
        "bert.embeddings.position_embeddings.weight": encoder.position_embeddings.weight,
        "bert.embeddings.token_type_embeddings.weight": encoder.token_type_embeddings.weight,
        **_pair("bert.embeddings.LayerNorm", encoder.norm),
    }
    for i, layer in enumerate(encoder.layers):
        targets |= _layer_targets(f"bert.encoder.layer.{i}", layer)  # type: ignore[arg-type]
    return targets


def head_targets(head: MaskedLMHead) -> dict[str, Tensor]:
    """The parameters of a language-model head by published name, the bias excepted."""
    return {
        **_pair("cls.predictions.transform.dense", head.dense),
        **_pair("cls.predictions.transform.LayerNorm", head.norm),
    }


def bias_name(tensors: Mapping[str, Tensor]) -> str:
    """The name under which the output bias is stored; a ValueError if two different ones are."""
    found = set(tensors.keys())
    names = [name for name in _BIASES if name in found]
    if len(names) == 2 and not torch.equal(tensors[names[0]], tensors[names[1]]):
        msg = f"{names[0]} and {names[1]} differ; they must be the same tensor."
        raise ValueError(msg)
    return names[0]


def check_tied(tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if there is a decoder weight that differs from the word embeddings."""
    # a set: Mapping.__contains__ would read the tensor
    if _DECODER_WEIGHT in set(tensors.keys()) and not torch.equal(tensors[_DECODER_WEIGHT], tensors[_WORDS]):
        msg = f"{_DECODER_WEIGHT} differs from {_WORDS}; the output weights must be the word embeddings."
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


def _layer_targets(name: str, layer: BertLayer) -> dict[str, Tensor]:
    d = layer.out.in_features
    targets: dict[str, Tensor] = {}
    for i, part in enumerate(("query", "key", "value")):
        rows = slice(i * d, (i + 1) * d)
        targets[f"{name}.attention.self.{part}.weight"] = layer.qkv.weight.detach()[rows]
        targets[f"{name}.attention.self.{part}.bias"] = layer.qkv.bias.detach()[rows]
    targets |= _pair(f"{name}.attention.output.dense", layer.out)
    targets |= _pair(f"{name}.attention.output.LayerNorm", layer.norm1)
    targets |= _pair(f"{name}.intermediate.dense", layer.up)
    targets |= _pair(f"{name}.output.dense", layer.down)
    targets |= _pair(f"{name}.output.LayerNorm", layer.norm2)
    return targets


def _pair(name: str, module: nn.Linear | nn.LayerNorm) -> dict[str, Tensor]:
    return {f"{name}.weight": module.weight.detach(), f"{name}.bias": module.bias.detach()}


def _both(missing: list[str], unexpected: list[str]) -> Iterable[tuple[str, list[str]]]:
    return (("missing", missing), ("unexpected", unexpected))


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}" if tensor.is_floating_point() else f"{tuple(tensor.shape)} of {tensor.dtype}"


def _some(names: list[str], separator: str = ", ") -> str:
    more = [f"and {len(names) - _N_NAMED} more"] if len(names) > _N_NAMED else []
    return separator.join(names[:_N_NAMED] + more)
