"""TranscriptFormer on packed cells (Pearce et al. 2025, doi:10.1101/2025.04.25.650731), as published.

The input of a gene is an MLP of its frozen protein vector, that of an assay a row of a table. With ``u`` the counts,
every key has the bias ``log(1 + u + eps)`` in all layers, and the residual of a layer starts at the *normalised* tensor:

    y = LayerNorm(x)
    w = LayerNorm(attention(y) + y)
    x ← down(gelu(up(w))) + w

There are no positions, and there is no norm after the last layer. Dropout is applied to the input of ``down``.
"""

from __future__ import annotations

from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from scfm.nn.causal import CausalPacking, CausalPath, attend_causal, causal_tiles
from scfm.nn.device import to_device
from scfm.nn.gene_rows import GENE_VECTORS, GeneRows, gene_vectors
from scfm.nn.linear import is_plain, linear
from scfm.nn.state_dict import check_layers, compare_names, compare_shapes, copy_into

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scfm.nn.attention import AttentionTile, Lengths
    from scfm.nn.transcriptformer_config import TranscriptFormerConfig

__all__ = [
    "GeneMLP",
    "TranscriptFormer",
    "TranscriptFormerLayer",
    "check_published",
    "published_shapes",
]

LAYER = "transformer_encoder.encoder_layers.{}"
"""Published name of a layer, by its number."""
LINEARS = {
    "query": "self_attn.linears.0",
    "key": "self_attn.linears.1",
    "value": "self_attn.linears.2",
    "output": "self_attn.linears.3",
    "up": "linear1",
    "down": "linear2",
}
"""Published names of the linear layers in it."""
CHUNK = 1024
"""Tokens that go through the feed-forward block together on the CPU."""


class GeneMLP(nn.Module):
    """Linear, ReLU, layer norm, dropout, linear: from the vector of a gene to its input state."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(n_in, n_hidden)
        self.norm = nn.LayerNorm(n_hidden)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(n_hidden, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(n, n_in)`` → ``(n, n_out)``."""
        return linear(self.down, self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """Input of the last linear layer, shape ``(n, n_hidden)``."""
        return cast("Tensor", self.dropout(self.norm(linear(self.up, x, "relu"))))


class TranscriptFormerLayer(nn.Module):
    """One layer on packed tokens.

    Its modules are called, so adapters and hooks take effect; on the CPU without gradients all but ``norm1`` and ``qkv``
    are called on chunks of up to 1024 tokens.

    Parameters
    ----------
    config
        Sizes.
    """

    def __init__(self, config: TranscriptFormerConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.n_heads, self.softcap = config.n_heads, float(config.softcap)
        self.norm1 = nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=config.attn_bias)
        """Query, key and value projections, stacked in this order."""
        self.out = nn.Linear(d, d, bias=config.attn_bias)
        self.norm2 = nn.LayerNorm(d)
        self.up = nn.Linear(d, config.intermediate_size, bias=config.ffn_bias)
        self.dropout = nn.Dropout(config.dropout)
        self.down = nn.Linear(config.intermediate_size, d, bias=config.ffn_bias)

    def forward(self, x: Tensor, bias: Tensor, packing: CausalPacking, path: CausalPath) -> Tensor:
        """Hidden states of the next layer, shape ``(T, d)`` like ``x``; ``bias`` is that of each key, ``(T,)``."""
        y = self.norm1(x)
        qkv = linear(self.qkv, y)
        attended = attend_causal(qkv, bias, packing, self.n_heads, self.softcap, path)
        if attended.requires_grad or attended.device.type != "cpu":
            return self._feed_forward(attended, y)
        chunks = zip(attended.split(CHUNK), y.split(CHUNK), strict=True)
        return torch.cat([self._feed_forward(*chunk) for chunk in chunks])

    def _feed_forward(self, attended: Tensor, y: Tensor) -> Tensor:
        w = self.norm2(linear(self.out, attended) + y)
        wide = self.dropout(linear(self.up, w, "gelu"))
        return linear(self.down, wide) + cast("Tensor", w)


class TranscriptFormer(nn.Module):
    """The input block and the first layers of a TranscriptFormer, on packed cells.

    Tokens from ``vocab_size`` on are assays. Input states of genes are computed when a gene first occurs and cached,
    except while gradients are recorded or where something wraps a module that computes them.

    Parameters
    ----------
    config
        Sizes.
    n_layers
        Number of layers to build, 0 to ``config.n_layers`` (default: all).
    attention
        How attention runs; see :data:`~scfm.nn.causal.CausalPath`.

    Raises
    ------
    ValueError
        If ``n_layers`` is out of bounds.
    """

    published_linears: ClassVar[Mapping[str, str]] = MappingProxyType(
        {part: f"{LAYER}.{name}" for part, name in LINEARS.items()}
    )
    """Published names of the linear layers of the layer ``{}``, by their role."""
    input_modules: ClassVar[tuple[str, ...]] = ("gene_mlp", "assays")
    """Modules that make the input of the first layer."""
    pads = False
    """Whether cells are padded on an accelerator; read when batches are planned."""

    def __init__(
        self, config: TranscriptFormerConfig, n_layers: int | None = None, *, attention: CausalPath = "auto"
    ) -> None:
        super().__init__()
        n_layers = config.n_layers if n_layers is None else n_layers
        if not 0 <= n_layers <= config.n_layers:
            msg = f"n_layers must be between 0 and {config.n_layers}, got {n_layers}."
            raise ValueError(msg)
        self.config = config
        self.attention: CausalPath = attention
        d = config.hidden_size
        self.gene_mlp = GeneMLP(config.gene_vector_size, d, d, config.dropout)
        self.assays = nn.Embedding(config.n_assays, d)
        self.layers = nn.ModuleList(TranscriptFormerLayer(config) for _ in range(n_layers))
        self.gene_vectors = torch.zeros(config.vocab_size, config.gene_vector_size)
        self._rows = GeneRows(config.vocab_size + config.n_assays)

    def forward(self, tokens: Tensor, counts: Tensor, lengths: Lengths) -> Tensor:
        """Hidden states of the last built layer.

        Parameters
        ----------
        tokens
            Token ids of the cells one after the other, int64, shape ``(T,)``, on the CPU.
        counts
            Count of each token, float32, shape ``(T,)``.
        lengths
            Tokens of each cell: a list of ints, an integer array, or an integer tensor on the CPU; they sum to ``T``.

        Returns
        -------
        Shape ``(T, d)``, dtype of the weights.

        Raises
        ------
        ValueError
            If the lengths do not sum to ``T``.
        IndexError
            If a token is not in the vocabulary.
        """
        x, bias, packing = self._start(tokens, counts, lengths)
        for layer in self.layers:
            x = layer(x, bias, packing, self.attention)
        return x

    def attention_tiles(self, tokens: Tensor, counts: Tensor, lengths: Lengths) -> Iterator[AttentionTile]:
        """Attention weights of the last built layer, tile by tile; arguments as in :meth:`forward`."""
        x, bias, packing = self._start(tokens, counts, lengths)
        *before, last = cast("list[TranscriptFormerLayer]", list(self.layers))
        for layer in before:
            x = layer(x, bias, packing, self.attention)
        yield from causal_tiles(linear(last.qkv, last.norm1(x)), bias, packing, last.n_heads, last.softcap)

    def _start(self, tokens: Tensor, counts: Tensor, lengths: Lengths) -> tuple[Tensor, Tensor, CausalPacking]:
        """Input states, the bias of each key, and where each cell lies."""
        packing = CausalPacking(lengths, self.assays.weight.device)
        if tokens.ndim != 1 or packing.n_tokens != len(tokens) or counts.shape != tokens.shape:
            msg = (
                f"lengths sum to {packing.n_tokens}, but tokens have shape {tuple(tokens.shape)} and counts "
                f"{tuple(counts.shape)}."
            )
            raise ValueError(msg)
        bias = torch.log1p(to_device(counts.to(torch.float32), packing.device) + self.config.log_counts_eps)
        return self.gene_states(tokens), bias, packing

    def gene_states(self, tokens: Tensor) -> Tensor:
        """Input states of tokens, shape ``(T, d)``."""
        modules = chain(self.gene_mlp.modules(), self.assays.modules())
        weights = chain(self.gene_mlp.parameters(), self.assays.parameters())
        return self._rows(tokens, self._input_states, weights, keep=all(map(_follows_from_weights, modules)))

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Load a published state dict; rows of the gene table are read when a gene first occurs.

        Raises
        ------
        ValueError
            If a tensor has another shape than the config says.
        """
        self.to_empty(device="cpu")
        copy_into(_targets(self), tensors)
        self.gene_vectors = gene_vectors(tensors)

    def published(self) -> dict[str, Tensor]:
        """What is built by published name, sharing memory, with the vectors of genes."""
        return {**_targets(self), GENE_VECTORS: self.gene_vectors}

    def _input_states(self, tokens: Tensor) -> Tensor:
        weight = self.assays.weight
        is_gene = tokens < self.config.vocab_size
        states = weight.new_empty(len(tokens), self.config.hidden_size)
        genes = self.gene_vectors[tokens[is_gene]].to(device=weight.device, dtype=weight.dtype)
        where = is_gene.to(weight.device)
        states = states.masked_scatter(where[:, None], self.gene_mlp(genes))
        return states.masked_scatter(
            ~where[:, None], self.assays((tokens[~is_gene] - self.config.vocab_size).to(weight.device))
        )


def _follows_from_weights(module: nn.Module) -> bool:
    """Whether a module is unwrapped and without active dropout, so that its weights determine its output."""
    kind = type(module)
    drops = isinstance(module, nn.Dropout) and module.training and module.p > 0
    return kind in (GeneMLP, nn.Linear, nn.LayerNorm, nn.Dropout, nn.Embedding) and is_plain(module, kind) and not drops


def check_published(shapes: Mapping[str, tuple[int, ...]], config: TranscriptFormerConfig) -> None:
    """Compare all names and shapes of a published state dict with a config, before anything is built.

    Raises
    ------
    ValueError
        If names are missing or unexpected, or a tensor has another shape.
    """
    check_layers(shapes, config.n_layers)
    expected = published_shapes(config)
    compare_names(shapes, expected, (), f"a TranscriptFormer of {config.n_layers} layers")
    compare_shapes(shapes, expected)


def published_shapes(config: TranscriptFormerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dict, heads included."""
    d, half, f, h = config.hidden_size, config.hidden_size // 2, config.intermediate_size, config.gene_head_size
    shapes: dict[str, tuple[int, ...]] = {
        GENE_VECTORS: (config.vocab_size, config.gene_vector_size),
        "aux_embeddings.assay.weight": (config.n_assays, d),
        "mu.gene_embedding.weight": (config.vocab_size, 1),
    }
    mlps = {
        "gene_embeddings.mlp": (config.gene_vector_size, d, d),
        "mu.mlp": (2 * d, half, 1),
        "gene_id_head": (d, h, config.vocab_size),
    }
    for name, (n_in, hidden, n_out) in mlps.items():
        for layer, shape in (("0", (hidden, n_in)), ("2", (hidden,)), ("4", (n_out, hidden))):
            shapes[f"{name}.layers.{layer}.weight"] = shape
            shapes[f"{name}.layers.{layer}.bias"] = shape[:1]
    for i in range(config.n_layers):
        layer = LAYER.format(i)
        for part, name in LINEARS.items():
            shape = {"up": (f, d), "down": (d, f)}.get(part, (d, d))
            shapes[f"{layer}.{name}.weight"] = shape
            if config.ffn_bias if part in ("up", "down") else config.attn_bias:
                shapes[f"{layer}.{name}.bias"] = shape[:1]
        for norm in ("norm1", "norm2"):
            shapes[f"{layer}.{norm}.weight"] = shapes[f"{layer}.{norm}.bias"] = (d,)
    return shapes


def mlp_targets(name: str, mlp: GeneMLP) -> dict[str, Tensor]:
    """The parameters of an MLP by published name."""
    parts = {"0": mlp.up, "2": mlp.norm, "4": mlp.down}
    return {
        f"{name}.layers.{key}.{kind}": getattr(module, kind).detach()
        for key, module in parts.items()
        for kind in ("weight", "bias")
    }


def _targets(network: TranscriptFormer) -> dict[str, Tensor]:
    d = network.config.hidden_size
    targets = {
        "aux_embeddings.assay.weight": network.assays.weight.detach(),
        **mlp_targets("gene_embeddings.mlp", network.gene_mlp),
    }
    for i, layer in enumerate(cast("list[TranscriptFormerLayer]", network.layers)):
        name = LAYER.format(i)
        linears = {LINEARS["output"]: layer.out, LINEARS["up"]: layer.up, LINEARS["down"]: layer.down}
        modules: dict[str, nn.Module] = {**linears, "norm1": layer.norm1, "norm2": layer.norm2}
        for part, module in modules.items():
            for kind, parameter in module.named_parameters():
                targets[f"{name}.{part}.{kind}"] = parameter.detach()
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(j * d, (j + 1) * d)
            for kind, parameter in layer.qkv.named_parameters():
                targets[f"{name}.{LINEARS[part]}.{kind}"] = parameter.detach()[rows]
    return targets
