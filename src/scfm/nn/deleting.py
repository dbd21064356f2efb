"""Hidden states of a BERT for copies of a cell that lack one token each.

Behind the token that a copy lacks, all others are one position further ahead. So over all copies each token has two
inputs, and the projections of the first layer are computed twice a token instead of once a copy. Where a copy lacks the
token ``j``, and ``k, v`` are keys and values at the positions of the cell, ``k', v'`` those one ahead, the value that
a query ``q`` attends to is

    (Σ_{i<j} e^{q kᵢ} vᵢ + Σ_{i>j} e^{q k'ᵢ} v'ᵢ) / (Σ_{i<j} e^{q kᵢ} + Σ_{i>j} e^{q k'ᵢ})

The terms outside of the first and the last ``j`` of a run of copies are added up once for all of them. This needs a first
layer whose projections nothing wraps, the CPU, and no gradients; otherwise each copy goes through all layers.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from scfm.nn.attention import Packing, attend
from scfm.nn.linear import linear
from scfm.nn.masking import shared_layer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scfm.nn.bert import BertEncoder, BertLayer

__all__ = ["copies_forward"]

MIN_COPIES = 3
"""Copies of a cell from which on sharing is faster, if their gaps are within half of it."""
MIN_TOTAL = 1e-20
"""A query whose heaviest key outweighs the others by more has no accurate sum without that key."""


def copies_forward(
    network: BertEncoder, tokens: Tensor, lengths: Sequence[int], cells: Sequence[int], *, first_only: bool
) -> Tensor:
    """Hidden states of sequences, of which those of one cell may be copies that lack one token each.

    Parameters
    ----------
    network
        Encoder, in evaluation mode.
    tokens
        As for the network, on the CPU.
    lengths
        Tokens of each sequence.
    cells
        Cell of each sequence.
    first_only
        As for the network.

    Returns
    -------
    What the network returns, up to rounding.
    """
    layer = shared_layer(network) if network.word_embeddings.weight.device.type == "cpu" else None
    runs = [(length, len(list(run))) for (_, length), run in groupby(zip(cells, lengths, strict=True))]
    parts = tokens.split([length * n for length, n in runs])
    found = [
        None if layer is None else _shared(network, layer, part.view(n, -1))
        for part, (_, n) in zip(parts, runs, strict=True)
    ]
    if layer is None or not any(found):
        return cast("Tensor", network(tokens, lengths, first_only=first_only))
    inputs, attended = [], []
    for part, (length, n), shared in zip(parts, runs, found, strict=True):
        x, values = shared or _apart(network, layer, part, [length] * n)
        inputs.append(x)
        attended.append(values)
    x = layer._after_attention(torch.cat(attended), torch.cat(inputs))
    return network.after(x, Packing(lengths, x.device, network.attention), 1, first_only=first_only)


def _apart(network: BertEncoder, layer: BertLayer, tokens: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Inputs and attended values of the first layer, each ``(n_tokens, d)``."""
    packing = Packing(lengths, tokens.device, network.attention)
    x = network._embed(tokens, packing)
    return x, attend(linear(layer.qkv, x), packing, layer.n_heads)


def _shared(network: BertEncoder, layer: BertLayer, copies: Tensor) -> tuple[Tensor, Tensor] | None:
    """The same for copies that lack one token each; ``None`` if that is not so, or would not be accurate."""
    found = _gaps(copies) if len(copies) >= MIN_COPIES else None
    if found is None or len(found[0]) > network.config.max_positions:
        return None
    cell, gaps = found
    n = len(cell)
    # tokens at their positions in the cell, and all but the first one ahead
    x = network._embed(torch.cat([cell, cell[1:]]), Packing([n, n - 1], cell.device))
    attended = _attended(linear(layer.qkv, x), n, gaps, layer.n_heads)
    if attended is None:
        return None
    return torch.cat([part for gap in gaps for part in (x[:gap], x[n + gap :])]), attended


def _gaps(copies: Tensor) -> tuple[Tensor, list[int]] | None:
    """The cell, and the position in it of the token that each copy lacks, if that is all that they lack."""
    a, b = copies[0], copies[-1]
    n, differs = len(a), (a != b).nonzero()[:, 0]
    if not len(differs):
        return None
    at = int(differs[0])
    for lacks, has in ((a, b), (b, a)):  # where they first differ, one of them still has what the other lacks
        cell = torch.cat([lacks[:at], has[at : at + 1], lacks[at:]])
        before = (copies == cell[:n]).int().cumprod(dim=1)
        gaps = before.sum(dim=1).tolist()
        if bool(((copies == cell[1:]) | before.bool()).all()):
            return (cell, gaps) if 2 * (max(gaps) - min(gaps)) <= n else None
    return None


def _attended(qkv: Tensor, n: int, gaps: list[int], n_heads: int) -> Tensor | None:
    """Attended values of all copies, from queries, keys and values of the tokens at their two positions, ``(2 n − 1, 3 d)``."""
    low, high = min(gaps), max(gaps)
    span = high - low
    # before its gap a copy has tokens at their positions, behind it one ahead: these are all that any copy has
    used = torch.cat([qkv[:high], qkv[n + low :]])
    q, k, v = used.view(len(used), 3, n_heads, -1).permute(1, 2, 0, 3).contiguous().unbind(0)
    out = qkv.new_empty(len(gaps), n - 1, n_heads, q.shape[-1])
    always = (slice(0, low), slice(high + span, None))
    for head, (query, key, value) in enumerate(zip(q * q.shape[-1] ** -0.5, k, v, strict=True)):
        scores = query @ key.T
        weights = scores.sub_(scores.amax(dim=1, keepdim=True)).exp_()
        common = sum((weights[:, part] @ value[part]).float() for part in always)
        totals = sum(weights[:, part].sum(dim=1, dtype=torch.float32) for part in always)
        middle, values = weights[:, low : high + span].float(), value[low : high + span].float()
        now, then = (middle[:, :span], values[:span]), (middle[:, span:], values[span:])
        done = 0
        for gap, copy in sorted(zip(gaps, out, strict=True), key=lambda pair: pair[0]):
            step = gap - low  # of the tokens between the gaps, these are at their positions, the others one ahead
            then[0][:, done:step], then[1][done:step] = now[0][:, done:step], now[1][done:step]
            done, sums = step, totals + then[0].sum(dim=1)
            if float(sums.min()) < MIN_TOTAL:
                return None
            new = torch.addmm(common, *then).div_(sums[:, None])
            copy[:gap, head], copy[gap:, head] = new[:gap], new[high + step :]
    return out.view(len(gaps) * (n - 1), -1)
