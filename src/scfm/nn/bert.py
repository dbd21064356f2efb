"""BERT encoder on packed cells (Devlin et al. 2019), as published for Geneformer.

Post-norm layers: with ``x`` the hidden states,

    x ← LayerNorm(x + out(attention(x)))
    x ← LayerNorm(x + down(act(up(x))))

and ``x₀ = LayerNorm(word[token] + token_type[0] + position[0 … n - 1])``; there is no norm after the last layer.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scfm.nn.attention import AttentionPath, AttentionTile, Lengths, Packing, attend, attend_first, attention_tiles
from scfm.nn.device import to_device
from scfm.nn.linear import affine, is_plain, linear
from scfm.nn.published import LAYER, LINEARS, WORDS, check_names, check_tied
from scfm.nn.state_dict import copy_into, weight_and_bias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scfm.nn.bert_config import BertConfig

__all__ = ["BertEncoder", "BertLayer", "encoder_targets", "init_weights"]

INIT_STD = 0.02

CHUNK = 1024
"""Tokens that go through the feed-forward block together on the CPU."""


class BertLayer(nn.Module):
    """One post-norm encoder layer on packed tokens.

    Its modules are called, so adapters and hooks take effect; on the CPU without gradients all but ``qkv`` are called on
    chunks of up to 1024 tokens.

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
        self.dropout = nn.Dropout(config.dropout)
        """For attention weights and for what is added to ``x``."""

    def forward(self, x: Tensor, packing: Packing, *, first_only: bool = False) -> Tensor:
        """Hidden states of the next layer, shape ``(T, d)`` like ``x``, or of first tokens only, ``(n_cells, d)``."""
        if first_only and self.is_splittable:
            return self._forward_first(x, packing)
        attended = attend(linear(self.qkv, x), packing, self.n_heads, self.dropout.p if self.dropout.training else 0.0)
        if first_only:
            first = packing.first()
            attended, x = attended[first], x[first]
        return self._after_attention(attended, x)

    @property
    def is_splittable(self) -> bool:
        """Whether queries, keys and values may be computed apart, from the rows of the weights of ``qkv``."""
        drops = self.dropout.training and self.dropout.p > 0
        return not drops and is_plain(self.qkv) and self.qkv.bias is not None

    def _forward_first(self, x: Tensor, packing: Packing) -> Tensor:
        first = x[packing.first()]
        (wq, wk, wv), (bq, _, bv) = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        by_head = (self.n_heads, -1, x.shape[1])
        q = affine(first, wq, bq).unflatten(1, (self.n_heads, -1))
        # (W x) · q = x · (Wᵀ q): one query and one value per cell are projected, not all keys and values. The bias of
        # the keys adds the same to all scores of a query, which softmax ignores.
        queries = torch.einsum("che,hed->chd", q, wk.view(by_head))
        states = attend_first(queries, x, packing, q.shape[-1] ** -0.5)
        attended = torch.einsum("chd,hed->che", states, wv.view(by_head)).flatten(1) + bv
        return self._after_attention(attended, first)

    def _after_attention(self, attended: Tensor, x: Tensor) -> Tensor:
        if attended.requires_grad or attended.device.type != "cpu":
            return self._feed_forward(attended, x)
        # tokens are independent from here on: chunks fit the cache and bound the memory of wide activations
        chunks = zip(attended.split(CHUNK), x.split(CHUNK), strict=True)
        return torch.cat([self._feed_forward(*chunk) for chunk in chunks])

    def _feed_forward(self, attended: Tensor, x: Tensor) -> Tensor:
        x = self.norm1(self._added(self.out, attended, x))
        wide = linear(self.up, x)
        in_place = is_plain(self.up) and not wide.requires_grad
        wide = F.relu(wide, inplace=in_place) if self.hidden_act == "relu" else F.gelu(wide)
        return cast("Tensor", self.norm2(self._added(self.down, wide, x)))

    def _added(self, layer: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
        """``dropout(layer(x)) + residual``, in place where neither autograd nor a hook holds the product."""
        new = self.dropout(linear(layer, x))
        in_place = is_plain(layer) and is_plain(self.dropout, nn.Dropout) and not new.requires_grad
        return cast("Tensor", new.add_(residual) if in_place else new + residual)


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

    published_linears: ClassVar[Mapping[str, str]] = MappingProxyType(
        {part: f"{LAYER}.{name}" for part, name in LINEARS.items()}
    )
    """Published names of the linear layers of the layer ``{}``, by their role."""
    input_modules: ClassVar[tuple[str, ...]] = (
        "word_embeddings",
        "position_embeddings",
        "token_type_embeddings",
        "norm",
    )
    """Modules that make the input of the first layer."""

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
        self.dropout = nn.Dropout(config.dropout)
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
        for i, layer in enumerate(layers, 1):
            x = layer(x, packing, first_only=first_only and i == len(layers))
        return x if layers or not first_only else x[packing.first()]

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

    def attention_tiles(self, tokens: Tensor, lengths: Lengths) -> Iterator[AttentionTile]:
        """Attention weights of the last built layer, tile by tile; arguments as in :meth:`forward`."""
        packing = self._pack(tokens, lengths)
        x = self._embed(tokens, packing)
        *before, last = cast("list[BertLayer]", list(self.layers))
        for layer in before:
            x = layer(x, packing)
        yield from attention_tiles(linear(last.qkv, x), packing, self.config.n_heads)

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the weights of a published ``BertForMaskedLM`` state dict into the built layers.

        The language-model head is not loaded (see :class:`~scfm.nn.MaskedLMHead`); it may be missing as a whole.

        Parameters
        ----------
        tensors
            Tensors by published name. Only those of the built layers are looked up, one at a time, so a lazy mapping
            reads nothing else. Floating point tensors are cast to the dtype of the weights.

        Raises
        ------
        ValueError
            If names are missing or unexpected, or a tensor has another shape; the weights are then undefined.
        """
        check_names(tensors, self.config)
        if self.word_embeddings.weight.is_meta:
            self.to_empty(device="cpu")
        copy_into(encoder_targets(self), tensors)
        check_tied(tensors)

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
        first_type = torch.zeros(1, dtype=torch.int64, device=packing.device)
        x = self.word_embeddings(to_device(tokens, packing.device)) + self.token_type_embeddings(first_type)
        return cast("Tensor", self.dropout(self.norm(x + self.position_embeddings(packing.positions()))))


def init_weights(module: nn.Module) -> None:
    """Draw the weights of one module: normal with standard deviation 0.02, biases zero (Devlin et al. 2019)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def encoder_targets(encoder: BertEncoder) -> dict[str, Tensor]:
    """The parameters of an encoder (or parts of them, sharing memory) by published name."""
    targets: dict[str, Tensor] = {
        WORDS: encoder.word_embeddings.weight,
        "bert.embeddings.position_embeddings.weight": encoder.position_embeddings.weight,
        "bert.embeddings.token_type_embeddings.weight": encoder.token_type_embeddings.weight,
        **weight_and_bias("bert.embeddings.LayerNorm", encoder.norm),
    }
    for i, layer in enumerate(encoder.layers):
        targets |= _layer_targets(LAYER.format(i), layer)  # type: ignore[arg-type]
    return targets


def _layer_targets(name: str, layer: BertLayer) -> dict[str, Tensor]:
    d = layer.out.in_features
    targets: dict[str, Tensor] = {}
    for i, part in enumerate(("query", "key", "value")):
        rows = slice(i * d, (i + 1) * d)
        targets[f"{name}.{LINEARS[part]}.weight"] = layer.qkv.weight.detach()[rows]
        targets[f"{name}.{LINEARS[part]}.bias"] = layer.qkv.bias.detach()[rows]
    for part, linear_layer in (("output", layer.out), ("up", layer.up), ("down", layer.down)):
        targets |= weight_and_bias(f"{name}.{LINEARS[part]}", linear_layer)
    targets |= weight_and_bias(f"{name}.attention.output.LayerNorm", layer.norm1)
    targets |= weight_and_bias(f"{name}.output.LayerNorm", layer.norm2)
    return targets
