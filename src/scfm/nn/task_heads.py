"""Heads for fine-tuning: from the states of a network to scores of classes, or numbers, for cells or genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from scfm.nn.attention import Lengths, Packing
from scfm.nn.bert import init_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ModuleHead", "Reading", "States", "TaskHead"]

Reading = Literal["linear", "bert", "first", "attention", "genes"]


class States(NamedTuple):
    """What a network makes of packed cells."""

    hidden: Tensor
    """Last hidden state of each token, shape ``(T, d)``."""
    pooled: Tensor
    """Embedding of each cell, shape ``(n_cells, d)``."""
    lengths: Lengths
    """Tokens of each cell; they sum to ``T``."""


class Pooled(nn.Module):
    """The embedding of a cell, by the pooling of its model, each feature standardised.

    Features of models differ in scale by orders of magnitude, and a linear layer would learn as slowly.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    def fit(self, pooled: Tensor) -> None:
        """Take mean and standard deviation of some cells, shape ``(n_cells, d)``; of cells without NaN."""
        there = pooled[pooled.isfinite().all(dim=1)].float()
        if len(there) > 1:
            sd = there.std(dim=0)
            self.mean.copy_(there.mean(dim=0))
            self.scale.copy_(torch.where(sd > 0, sd, torch.ones_like(sd)))

    def forward(self, states: States) -> Tensor:
        """Shape ``(n_cells, d)``."""
        return (states.pooled - self.mean) / self.scale


class Pooler(nn.Module):
    """``tanh(dense(h₀))`` of the first token of a cell, as ``BertForSequenceClassification`` has it."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(n_features, n_features)

    def forward(self, states: States) -> Tensor:
        """Shape ``(n_cells, d)``."""
        first = states.hidden[Packing(states.lengths, states.hidden.device, "cells").first()]
        return torch.tanh(self.dense(first))


class First(nn.Module):
    """The state of the first token of a cell."""

    def forward(self, states: States) -> Tensor:
        """Shape ``(n_cells, d)``."""
        return states.hidden[Packing(states.lengths, states.hidden.device, "cells").first()]


class AttentionPool(nn.Module):
    """Mean of the tokens of a cell with learned weights, a softmax over its own tokens."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        # a bias would be the same for all tokens, and softmax does not see it
        self.attention_weights = nn.Linear(n_features, 1, bias=False)

    def forward(self, states: States) -> Tensor:
        """Shape ``(n_cells, d)``."""
        lengths = Packing(states.lengths, states.hidden.device, "cells").lengths
        scores = self.attention_weights(states.hidden).float()
        cells = zip(states.hidden.split(lengths), scores.split(lengths), strict=True)
        return torch.stack([(weights.softmax(dim=0) * hidden).sum(dim=0) for hidden, weights in cells])


class Tokens(nn.Module):
    """The state of each token."""

    def forward(self, states: States) -> Tensor:
        """Shape ``(T, d)``."""
        return states.hidden


PLAIN: dict[str, type[nn.Module]] = {"first": First, "genes": Tokens}
POOL_WEIGHTS = "attention_pool.attention_weights"
READERS: dict[str, type[nn.Module]] = {"linear": Pooled, "bert": Pooler, "attention": AttentionPool}


class TaskHead(nn.Module):
    """Dropout and a linear layer for each target, on what it reads of a cell.

    Parameters
    ----------
    reading
        ``"linear"``: the embedding of a cell, standardised. ``"bert"``: a dense layer and tanh on its first token, as
        ``BertForSequenceClassification``. ``"first"``: its first token. ``"attention"``: a learned mean of its tokens. ``"genes"``: each token.
    n_features
        Features of a state.
    outputs
        Number of outputs of each target.
    dropout
        Dropout probability before the linear layers.
    """

    def __init__(self, reading: Reading, n_features: int, outputs: Mapping[str, int], dropout: float = 0.0) -> None:
        super().__init__()
        if reading not in get_args(Reading):
            msg = f"head={reading!r} is not known; choose from {', '.join(map(repr, get_args(Reading)))}."
            raise ValueError(msg)
        self.reading = reading
        self.reader = PLAIN[reading]() if reading in PLAIN else READERS[reading](n_features)
        self.dropout = nn.Dropout(dropout)
        # a name of a column may hold what a name of a module must not, so they are numbered
        self.names = list(outputs)
        self.layers = nn.ModuleList(nn.Linear(n_features, size) for size in outputs.values())
        self.apply(init_weights)

    def forward(self, states: States) -> dict[str, Tensor]:
        """Scores of each target, float32, shape ``(n_cells, n_outputs)``, or ``(T, n_outputs)`` for genes."""
        read = self.dropout(self.reader(states))
        return {name: layer(read).float() for name, layer in zip(self.names, self.layers, strict=True)}

    def fit(self, pooled: Tensor) -> None:
        """Standardise embeddings by those of some cells, shape ``(n_cells, d)``, if that is what the head reads."""
        if isinstance(self.reader, Pooled):
            self.reader.fit(pooled)

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the head of a published fine-tuned model.

        Parameters
        ----------
        tensors
            Tensors by published name: ``classifier.*``, ``bert.pooler.dense.*``, ``classification_heads.<i>.*``,
            ``attention_pool.attention_weights`` of shape ``(d, 1)``. Models of several tasks hold a pooler that they do not
            use, which is left out.

        Raises
        ------
        ValueError
            If names are missing or unexpected, or a tensor has another shape.
        """
        own = self.state_dict()
        unused = () if self.reading == "bert" else ("bert.pooler.",)
        given = {name: tensor.float() for name, tensor in tensors.items() if not name.startswith(unused)}
        if POOL_WEIGHTS in given:
            given[f"{POOL_WEIGHTS}.weight"] = given.pop(POOL_WEIGHTS).T
        named = {_own_name(name): tensor for name, tensor in given.items()}
        wrong = sorted(own.keys() ^ named.keys()) or [
            name for name, tensor in named.items() if tensor.shape != own[name].shape
        ]
        if wrong:
            msg = f"The head does not fit: {wrong[0]} is missing, not expected, or of another shape."
            raise ValueError(msg)
        self.load_state_dict(named)


def _own_name(published: str) -> str:
    """Name here of a tensor of a published head."""
    replaced = {
        "classifier.": "layers.0.",
        "classification_heads.": "layers.",
        "bert.pooler.": "reader.",
        "attention_pool.": "reader.",
    }
    for prefix, own in replaced.items():
        if published.startswith(prefix):
            return own + published.removeprefix(prefix)
    return published


class ModuleHead(nn.Module):
    """A module of the user on the embeddings of cells, which are standardised, for one target.

    Parameters
    ----------
    module
        Takes embeddings, shape ``(n_cells, d)``, and gives scores, shape ``(n_cells, n_outputs)``.
    n_features
        Features of an embedding.
    outputs
        Number of outputs of the target.
    """

    def __init__(self, module: nn.Module, n_features: int, outputs: Mapping[str, int]) -> None:
        super().__init__()
        self.reader, self.module = Pooled(n_features), module
        ((self.name, self.n_outputs),) = outputs.items()

    def fit(self, pooled: Tensor) -> None:
        """Standardise embeddings by those of some cells, shape ``(n_cells, d)``."""
        self.reader.fit(pooled)

    def forward(self, states: States) -> dict[str, Tensor]:
        """Scores of the target, float32, shape ``(n_cells, n_outputs)``; a ValueError if the module gives another shape."""
        scores = cast("Tensor", self.module(self.reader(states))).float()
        expected = (len(states.pooled), self.n_outputs)
        if tuple(scores.shape) != expected:
            msg = f"The head gives scores of shape {tuple(scores.shape)}, expected {expected}: {self.n_outputs} for each cell."
            raise ValueError(msg)
        return {self.name: scores}
