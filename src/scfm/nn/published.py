"""The names and shapes of a published ``BertForMaskedLM`` state dict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scfm.nn.state_dict import Shapes, check_layers, compare_names, compare_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scfm.nn.bert_config import BertConfig

__all__ = ["LAYER", "LINEARS", "WORDS", "bias_name", "check_names", "check_shapes", "check_tied", "published_keys"]

WORDS = "bert.embeddings.word_embeddings.weight"
"""Published name of the word embeddings."""

LAYER = "bert.encoder.layer.{}"
"""Published name of a layer, by its number."""
LINEARS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
"""Published names of the linear layers in it."""

_HEAD = "cls.predictions."
_DECODER_WEIGHT = "cls.predictions.decoder.weight"
_BIASES = ("cls.predictions.bias", "cls.predictions.decoder.bias")


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
        WORDS: (vocab, d),
        "bert.embeddings.position_embeddings.weight": (config.max_positions, d),
        "bert.embeddings.token_type_embeddings.weight": (config.type_vocab_size, d),
    }
    optional: Shapes = {"bert.embeddings.position_ids": (1, config.max_positions)}

    def add(shapes: Shapes, name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    add(required, "bert.embeddings.LayerNorm", d)
    for i in range(config.n_layers):
        layer = LAYER.format(i)
        for part, name in LINEARS.items():
            add(required, f"{layer}.{name}", *{"up": (ffn, d), "down": (d, ffn)}.get(part, (d, d)))
        add(required, f"{layer}.attention.output.LayerNorm", d)
        add(required, f"{layer}.output.LayerNorm", d)
    add(optional, "bert.pooler.dense", d, d)
    if head:
        add(required, "cls.predictions.transform.dense", d, d)
        add(required, "cls.predictions.transform.LayerNorm", d)
        optional |= {_DECODER_WEIGHT: (vocab, d)} | dict.fromkeys(_BIASES, (vocab,))
    return required, optional


def check_names(tensors: Mapping[str, object], config: BertConfig, *, head: bool | None = None) -> None:
    """Raise a ValueError unless the names are those of :func:`published_keys`; no tensor is read.

    Parameters
    ----------
    tensors
        Mapping with the published names.
    config
        Sizes.
    head
        Whether the language-model head must be there. By default it may be missing, but only as a whole: fine-tuned
        models have none.
    """
    if head is None:
        head = any(name.startswith(_HEAD) for name in tensors.keys())
    required, optional = published_keys(config, head=head)
    names = list(required)
    if head and not set(tensors.keys()).intersection(_BIASES):
        names.append(_BIASES[0])
    compare_names(tensors, names, optional, f"a BERT model of {config.n_layers} layers")


def check_shapes(shapes: Mapping[str, tuple[int, ...]], config: BertConfig) -> None:
    """Compare all names and shapes of a state dict with a config, before anything is built.

    The language-model head may be missing as a whole.

    Parameters
    ----------
    shapes
        Shape of each tensor by published name.
    config
        Sizes.

    Raises
    ------
    ValueError
        If names are missing or unexpected, or a tensor has another shape.
    """
    check_layers(shapes, config.n_layers)
    check_names(shapes, config)
    required, optional = published_keys(config)
    compare_shapes(shapes, required | optional)


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
    if _DECODER_WEIGHT in set(tensors.keys()) and not torch.equal(tensors[_DECODER_WEIGHT], tensors[WORDS]):
        msg = f"{_DECODER_WEIGHT} differs from {WORDS}; the output weights must be the word embeddings."
        raise ValueError(msg)
