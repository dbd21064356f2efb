"""Outputs of a BERT for copies of a cell in which one token each is replaced by ``<mask>``.

Such copies share the first layer: queries, keys and values are those of the cell but for one row. With ``o`` the
attended value of a query, ``w`` the weight of the key that is removed and ``u`` that of the key that is added, both
relative to the sum of the cell, the value in the copy is

    (o − w v + u v') / (1 − w + u)

so a copy costs the feed-forward block of the first layer, but not its attention. This needs a first layer whose
projections nothing wraps, and no gradients; otherwise each copy goes through all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scfm.nn.attention import Packing
from scfm.nn.bert import BertLayer
from scfm.nn.device import to_device
from scfm.nn.linear import is_plain, linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scfm.nn.bert import BertEncoder

__all__ = ["masked_outputs"]

QUERIES = 512
"""Number of queries of a cell whose scores are held at a time."""

MAX_EXPONENT = 60.0
"""A key that outweighs all others by more than the exponential of this is the only one in float32."""


def masked_outputs(
    network: BertEncoder,
    cells: Sequence[tuple[Tensor, Tensor]],
    mask: int,
    pool: Callable[[Tensor, Sequence[int]], Tensor],
    *,
    first_only: bool,
    max_tokens: int,
) -> list[Tensor]:
    """Pooled output of copies of cells in which one token each is replaced.

    Parameters
    ----------
    network
        Encoder, in evaluation mode.
    cells
        Tokens of each cell, int64, shape ``(n_tokens,)``, and positions of the tokens to replace, int64, shape
        ``(n_positions,)``.
    mask
        Token that takes their place.
    pool
        Turns hidden states of packed copies (of their first tokens with ``first_only``) and their lengths into one
        vector per copy.
    first_only
        Whether only the first token is read.
    max_tokens
        Token budget of a batch of copies, which several cells share.

    Returns
    -------
    For each cell the vectors of its copies, shape ``(n_positions, n_features)``.
    """
    found: list[list[Tensor]] = [[] for _ in cells]
    waiting: list[tuple[int, int, Tensor]] = []  # cell, number of copies, their states
    first = shared_layer(network)

    def flush() -> None:
        if not waiting:
            return
        lengths = [len(states) // n for _, n, states in waiting for _ in range(n)]
        states = torch.cat([states for *_, states in waiting])
        packing = Packing(lengths, states.device, network.attention)
        output = pool(network.after(states, packing, 0 if first is None else 1, first_only=first_only), lengths)
        for (cell, *_), part in zip(waiting, output.split([n for _, n, _ in waiting]), strict=True):
            found[cell].append(part)
        waiting.clear()

    for i, (tokens, positions) in enumerate(cells):
        copies, at = _Copies(network, first, tokens, mask), 0
        while at < len(positions):
            used = sum(len(states) for *_, states in waiting)
            n = min(max((max_tokens - used) // len(tokens), 0 if waiting else 1), len(positions) - at)
            if n:
                waiting.append((i, n, copies.states(positions[at : at + n])))
                at += n
            else:
                flush()
    flush()
    nothing = network.word_embeddings.weight.new_empty(0, network.config.hidden_size)
    return [torch.cat(parts) if parts else nothing for parts in found]


def shared_layer(network: BertEncoder) -> BertLayer | None:
    """The first layer, if its output for the copies follows from that for the cell."""
    if torch.is_grad_enabled() or not len(network.layers):
        return None
    layer = network.layers[0]
    return layer if isinstance(layer, BertLayer) and is_plain(layer, BertLayer) and layer.is_splittable else None


class _Copies:
    """Copies of one cell, each with another token replaced; ``layer`` is the layer that they share."""

    def __init__(self, network: BertEncoder, layer: BertLayer | None, tokens: Tensor, mask: int) -> None:
        packing = network._pack(tokens, [len(tokens)])
        self._x = network._embed(tokens, packing)
        self._masked = network._embed(torch.full_like(tokens, mask), packing)
        self._layer = layer
        if layer is not None:
            self._attention = _Attention.of(_heads(layer, self._x))
            self._new = _heads(layer, self._masked)

    def states(self, positions: Tensor) -> Tensor:
        """Hidden states of the copies after the shared layer, one after the other, ``(n_positions * n_tokens, d)``."""
        positions = to_device(positions, self._x.device)
        copies = torch.arange(len(positions), device=positions.device)
        x = self._x.repeat(len(positions), 1)
        x[copies * len(self._x) + positions] = self._masked[positions]
        if self._layer is None:
            return x
        attended = self._attention.replaced(self._new, positions)
        return self._layer._after_attention(attended.flatten(0, 1).flatten(1).to(x.dtype), x)


Heads = tuple[Tensor, Tensor, Tensor]


def _heads(layer: BertLayer, x: Tensor) -> Heads:
    """Scaled queries, keys and values, float32, each ``(n_heads, n_tokens, head_dim)``."""
    qkv = linear(layer.qkv, x).float()
    q, k, v = qkv.view(len(x), 3, layer.n_heads, -1).permute(1, 2, 0, 3).contiguous()
    return q * q.shape[-1] ** -0.5, k, v


@dataclass(frozen=True)
class _Attention:
    """Attention of the unchanged cell; except ``heads``, tensors are ``(n_tokens, n_heads)``, values with one axis more."""

    heads: Heads
    log_sums: Tensor
    """Logarithm of the sum of the exponentials of each query."""
    out: Tensor
    """Attended values."""
    top: Tensor
    """Heaviest key of each query."""
    other_log_sums: Tensor
    """Logarithm of the sum of the exponentials without the heaviest key."""
    other_out: Tensor
    """Attended values without the heaviest key."""

    @classmethod
    def of(cls, heads: Heads) -> _Attention:
        q, k, v = heads
        parts = []
        for queries in q.split(QUERIES, dim=1):
            scores = queries @ k.transpose(1, 2)
            log_sums, top = scores.logsumexp(dim=-1), scores.argmax(dim=-1)
            out = (scores - log_sums[..., None]).exp() @ v
            # subtracting the heaviest key from a finished sum could leave nothing but rounding errors
            scores.scatter_(-1, top[..., None], -torch.inf)
            other_log_sums = scores.logsumexp(dim=-1)
            other_out = scores.sub_(other_log_sums[..., None]).exp_() @ v
            parts.append((log_sums, out, top, other_log_sums, other_out))
        return cls(heads, *(torch.cat(one, dim=1).transpose(0, 1).contiguous() for one in zip(*parts, strict=True)))

    def replaced(self, new: Heads, positions: Tensor) -> Tensor:
        """Attended values of a copy for each position, ``(n_positions, n_tokens, n_heads, head_dim)``."""
        (q, k, v), (_, new_k, new_v) = self.heads, new
        old, fresh = ((q @ part[:, positions].transpose(1, 2)).permute(2, 1, 0) for part in (k, new_k))
        weight = (old - self.log_sums).exp()
        rest, log_sums = 1 - weight, self.log_sums.expand_as(fresh).clone()
        removed, added = (part[:, positions].transpose(0, 1)[:, None] for part in (v, new_v))
        out = torch.addcmul(self.out, weight[..., None], removed, value=-1)
        at = (self.top == positions[:, None, None]).nonzero(as_tuple=True)
        out[at], log_sums[at], rest[at] = self.other_out[at[1:]], self.other_log_sums[at[1:]], 1.0
        weight = (fresh - log_sums).clamp_(max=MAX_EXPONENT).exp_()
        out.addcmul_(weight[..., None], added).div_((rest + weight)[..., None])
        out[torch.arange(len(positions), device=out.device), positions] = self._own(new, positions)
        return out

    def _own(self, new: Heads, positions: Tensor) -> Tensor:
        """Attended values of the tokens that were replaced, ``(n_positions, n_heads, head_dim)``."""
        (_, k, v), (q, new_k, new_v) = self.heads, new
        copies = torch.arange(len(positions), device=positions.device)
        scores = q[:, positions] @ k.transpose(1, 2)
        scores[:, copies, positions] = (q[:, positions] * new_k[:, positions]).sum(dim=-1)
        weights = scores.softmax(dim=-1)
        own = weights[:, copies, positions]
        weights[:, copies, positions] = 0
        return (weights @ v + own[..., None] * new_v[:, positions]).transpose(0, 1)
