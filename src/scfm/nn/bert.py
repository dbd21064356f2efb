"""BERT encoder on packed cells (Devlin et al. 2019), as published for Geneformer.

Post-norm layers: with ``x`` the hidden states,

    x ← LayerNorm(x + out(attention(x)))
    x ← LayerNorm(x + down(act(up(x))))

and ``x₀ = LayerNorm(word[token] + token_type[0] + position[0 … n - 1])``; there is no norm after the last layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scfm.nn.move import moved

from . import published
from .attention import AttentionPath, Lengths, Packing, attend, attend_first
from .linear import linear

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Activation", "BertConfig", "BertEncoder", "BertLayer"]

Activation = Literal["relu", "gelu"]
INIT_STD = 0.02

CHUNK = 1024
"""Tokens that go through the feed-forward block together on the CPU."""

_HF_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
}


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Sizes of a BERT encoder.

    Raises
    ------
    ValueError
        If a size is not a positive integer, ``hidden_size`` is not a multiple of ``n_heads``, ``layer_norm_eps`` is
        not positive, the activation is unknown, or ``pad_token_id`` is not in the vocabulary.
    """

    vocab_size: int
    """Number of tokens, special tokens included."""
    hidden_size: int
    """Features of a hidden state."""
    n_layers: int
    """Number of encoder layers of the published model."""
    n_heads: int
    """Number of attention heads."""
    intermediate_size: int
    """Width of the feed-forward block."""
    max_positions: int
    """Largest number of tokens of a cell."""
    type_vocab_size: int = 2
    """Rows of the token type table; only row 0 is used."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in every layer norm."""
    hidden_act: Activation = "relu"
    """Activation of the feed-forward block and of the language-model head; ``"gelu"`` is the exact one (erf)."""
    pad_token_id: int = 0
    """Token that upstream pads with; packed cells hold none."""

    def __post_init__(self) -> None:
        for name in (*_HF_KEYS, "type_vocab_size"):
            value: object = getattr(self, name)
            if not _is_int(value) or value < 1:
                msg = f"{_HF_KEYS.get(name, name)} must be a positive integer, got {value!r}."
                raise ValueError(msg)
        if self.hidden_size % self.n_heads:
            msg = f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.n_heads}."
            raise ValueError(msg)
        eps: object = self.layer_norm_eps  # from a file: the annotation promises nothing
        if not isinstance(eps, float) or not 0 < eps < 1:
            msg = f"layer_norm_eps must be a number between 0 and 1, got {eps!r}."
            raise ValueError(msg)
        if self.hidden_act not in ("relu", "gelu"):
            msg = f"hidden_act must be 'relu' or 'gelu', got {self.hidden_act!r}."
            raise ValueError(msg)
        pad: object = self.pad_token_id
        if not _is_int(pad) or not 0 <= pad < self.vocab_size:
            msg = f"pad_token_id must be an integer from 0 to {self.vocab_size - 1}, got {pad!r}."
            raise ValueError(msg)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> BertConfig:
        """Read the ``config.json`` of a published model; keys that do not shape the encoder are ignored.

        Parameters
        ----------
        config
            Content of a Hugging Face ``config.json`` of a BERT model.

        Raises
        ------
        ValueError
            If a key is missing, a value is out of bounds, or the positions are not absolute.
        """
        missing = [key for key in _HF_KEYS.values() if key not in config]
        if missing:
            msg = f"The model config lacks {', '.join(missing)}."
            raise ValueError(msg)
        positions = config.get("position_embedding_type", "absolute")
        if positions != "absolute":
            msg = f"position_embedding_type must be 'absolute', got {positions!r}."
            raise ValueError(msg)
        optional = ("type_vocab_size", "layer_norm_eps", "hidden_act", "pad_token_id")
        given = {key: config[key] for key in optional if key in config}
        return cls(**{name: config[key] for name, key in _HF_KEYS.items()}, **{"hidden_act": "gelu", **given})


class BertLayer(nn.Module):
    """One post-norm encoder layer on packed tokens.

    Parameters
    ----------
    config
        Sizes.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.layer_norm_eps
        self.n_heads = config.n_heads
        self.hidden_act = config.hidden_act
        self.qkv = nn.Linear(d, 3 * d)
        """Query, key and value projections, stacked in this order."""
        self.out = nn.Linear(d, d)
        self.norm1 = nn.LayerNorm(d, eps=eps)
        self.up = nn.Linear(d, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, d)
        self.norm2 = nn.LayerNorm(d, eps=eps)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """Hidden states of the next layer, shape ``(T, d)`` like ``x``."""
        qkv = linear(x, self.qkv.weight, self.qkv.bias)
        return self._after_attention(attend(qkv, packing, self.n_heads), x)

    def forward_first(self, x: Tensor, packing: Packing) -> Tensor:
        """Hidden state of the next layer for the first token of each cell, shape ``(n_cells, d)``."""
        first = x[packing.first()]
        (wq, wk, wv), (bq, _, bv) = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        by_head = (self.n_heads, -1, x.shape[1])
        q = linear(first, wq, bq).unflatten(1, (self.n_heads, -1))
        # (W x) · q = x · (Wᵀ q): one query and one value a cell are projected, not all keys and values. The bias of the
        # keys adds the same to all scores of a query, which softmax does not see.
        queries = torch.einsum("che,hed->chd", q, wk.view(by_head))
        states = attend_first(queries, x, packing, q.shape[-1] ** -0.5)
        attended = torch.einsum("chd,hed->che", states, wv.view(by_head)).flatten(1) + bv
        return self._after_attention(attended, first)

    def _after_attention(self, attended: Tensor, x: Tensor) -> Tensor:
        if attended.requires_grad or attended.device.type != "cpu":
            return self._feed_forward(attended, x)
        # each token stands alone from here on: pieces that fit the cache, and no wide activations of a whole batch
        pieces = zip(attended.split(CHUNK), x.split(CHUNK), strict=True)
        return torch.cat([self._feed_forward(*piece) for piece in pieces])

    def _feed_forward(self, attended: Tensor, x: Tensor) -> Tensor:
        x = self.norm1(_add(linear(attended, self.out.weight, self.out.bias), x))
        wide = linear(x, self.up.weight, self.up.bias)
        wide = F.relu(wide, inplace=not wide.requires_grad) if self.hidden_act == "relu" else F.gelu(wide)
        return cast("Tensor", self.norm2(_add(linear(wide, self.down.weight, self.down.bias), x)))


class BertEncoder(nn.Module):
    """The embedding block and the first layers of a BERT model, on packed cells.

    Only the layers that will be run are built. Weights are drawn as in the published pretraining (normal, 0.02);
    under ``torch.device("meta")`` nothing is drawn, and :meth:`load_published` allocates them on the CPU.

    Parameters
    ----------
    config
        Sizes.
    n_layers
        Number of layers to build, 0 to ``config.n_layers`` (default: all).
    attention
        How attention runs; see :data:`~scfm.nn.AttentionPath`.

    Raises
    ------
    ValueError
        If ``n_layers`` is out of bounds.
    """

    def __init__(self, config: BertConfig, n_layers: int | None = None, *, attention: AttentionPath = "auto") -> None:
        super().__init__()
        n_layers = config.n_layers if n_layers is None else n_layers
        if not 0 <= n_layers <= config.n_layers:
            msg = f"n_layers must be between 0 and {config.n_layers}, got {n_layers}."
            raise ValueError(msg)
        self.config = config
        self.attention: AttentionPath = attention
        d = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, d)
        self.position_embeddings = nn.Embedding(config.max_positions, d)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, d)
        self.norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(n_layers))
        self.apply(init_weights)

    def forward(self, tokens: Tensor, lengths: Lengths, *, first_only: bool = False) -> Tensor:
        """Hidden states of the last built layer.

        Parameters
        ----------
        tokens
            Token ids of the cells one after the other, int64, shape ``(T,)``; moved to the device of the weights.
        lengths
            Tokens of each cell: a list of ints, an integer array, or an integer tensor on the CPU; they sum to ``T``.
        first_only
            Return the first token of each cell only. The last layer then computes keys and values of all tokens, but
            everything else for the first tokens alone.

        Returns
        -------
        Shape ``(T, d)``, or ``(n_cells, d)`` with ``first_only``; dtype of the weights.

        Raises
        ------
        ValueError
            If the lengths do not sum to ``T``, a cell has more tokens than the model has positions, or with
            ``first_only`` a cell has none.
        IndexError
            If a token is not in the vocabulary (on the CPU).
        """
        packing = self._pack(tokens, lengths)
        return self.after(self._embed(tokens, packing), packing, 0, first_only=first_only)

    def after(self, x: Tensor, packing: Packing, start: int, *, first_only: bool = False) -> Tensor:
        """Send hidden states through the layers from ``start`` on; arguments and result as in :meth:`forward`."""
        layers = list(self.layers)[start:]
        if not first_only:
            for layer in layers:
                x = layer(x, packing)
            return x
        for layer in layers[:-1]:
            x = layer(x, packing)
        if not layers:
            return x[packing.first()]
        return cast("BertLayer", layers[-1]).forward_first(x, packing)

    def hidden_states(self, tokens: Tensor, lengths: Lengths) -> list[Tensor]:
        """Hidden states after the embedding block and after each built layer.

        Parameters
        ----------
        tokens, lengths
            As in :meth:`forward`.

        Returns
        -------
        ``n_layers + 1`` tensors of shape ``(T, d)``; the first is the output of the embedding norm.
        """
        packing = self._pack(tokens, lengths)
        states = [self._embed(tokens, packing)]
        for layer in self.layers:
            states.append(layer(states[-1], packing))
        return states

    def load_published(self, tensors: Mapping[str, Tensor], *, head: bool = True) -> None:
        """Copy the weights of a published ``BertForMaskedLM`` state dict into the built layers.

        Parameters
        ----------
        tensors
            Tensors by published name. Only those of the built layers are looked up, one at a time, so a lazy mapping
            reads nothing else. Floating point tensors are cast to the dtype of the weights.
        head
            Whether the language-model head belongs to the expected names (it is not loaded here;
            see :class:`~scfm.nn.MaskedLMHead`).

        Raises
        ------
        ValueError
            If names are missing or unexpected, or a tensor has another shape; the weights are then undefined.
        """
        published.check_names(tensors, self.config, head=head)
        if self.word_embeddings.weight.is_meta:
            self.to_empty(device="cpu")
        published.copy_into(published.encoder_targets(self), tensors)
        published.check_tied(tensors)

    def _pack(self, tokens: Tensor, lengths: Lengths) -> Packing:
        packing = Packing(lengths, self.word_embeddings.weight.device, self.attention)
        if tokens.ndim != 1 or packing.n_tokens != len(tokens):
            msg = f"lengths sum to {packing.n_tokens}, but tokens have shape {tuple(tokens.shape)}."
            raise ValueError(msg)
        longest = max(packing.lengths, default=0)
        if longest > self.config.max_positions:
            msg = f"A cell has {longest} tokens, the model has {self.config.max_positions} positions."
            raise ValueError(msg)
        return packing

    def _embed(self, tokens: Tensor, packing: Packing) -> Tensor:
        x = self.word_embeddings(moved(tokens, packing.device)) + self.token_type_embeddings.weight[0]
        return cast("Tensor", self.norm(x + self.position_embeddings(packing.positions())))


def _add(new: Tensor, x: Tensor) -> Tensor:
    """``new + x``, into the memory of ``new`` where autograd does not need it."""
    return new + x if new.requires_grad else new.add_(x)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def init_weights(module: nn.Module) -> None:
    """Draw the weights of one module: normal with standard deviation 0.02, biases zero (Devlin et al. 2019)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
