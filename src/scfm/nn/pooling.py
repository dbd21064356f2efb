"""Pool the hidden states of packed tokens to one vector per cell or per gene."""

from __future__ import annotations

import torch
from torch import Tensor

from scfm.nn.attention import Lengths, Packing

__all__ = ["GeneMeans", "pool_mean", "pool_sum"]


def pool_mean(hidden: Tensor, lengths: Lengths, *, skip_first: int = 0, skip_last: int = 0) -> Tensor:
    """Mean hidden state of each cell, accumulated in float32.

    Parameters
    ----------
    hidden
        Hidden states of packed tokens, shape ``(T, d)``.
    lengths
        Tokens of each cell; they sum to ``T``.
    skip_first, skip_last
        Tokens left out at the start and the end of each cell, e.g. 1 and 1 for ``<cls>`` and ``<eos>``.

    Returns
    -------
    float32, shape ``(n_cells, d)``; NaN for a cell with no token left.

    Raises
    ------
    ValueError
        If the lengths do not sum to ``T``.
    """
    packing = Packing(lengths, hidden.device, "cells")
    _check_sum(hidden, packing)
    rows = [
        cell[skip_first : max(skip_first, len(cell) - skip_last)].mean(dim=0, dtype=torch.float32)
        for cell in hidden.split(packing.lengths)
    ]
    return torch.stack(rows) if rows else hidden.new_empty(0, hidden.shape[1], dtype=torch.float32)


def pool_sum(hidden: Tensor, lengths: Lengths, skip: Lengths) -> Tensor:
    """Sum of the hidden states of each cell, accumulated in float32.

    Parameters
    ----------
    hidden
        Hidden states of packed tokens, shape ``(T, d)``.
    lengths
        Tokens of each cell; they sum to ``T``.
    skip
        Tokens left out at the start of each cell.

    Returns
    -------
    float32, shape ``(n_cells, d)``.

    Raises
    ------
    ValueError
        If the lengths do not sum to ``T``.
    """
    packing = Packing(lengths, hidden.device, "cells")
    _check_sum(hidden, packing)
    cells = zip(hidden.split(packing.lengths), skip, strict=True)
    rows = [cell[int(first) :].sum(dim=0, dtype=torch.float32) for cell, first in cells]
    return torch.stack(rows) if rows else hidden.new_empty(0, hidden.shape[1], dtype=torch.float32)


class GeneMeans:
    """Running mean of the hidden states of each token over all cells, summed in float64.

    Parameters
    ----------
    vocab_size
        Number of tokens of the vocabulary.
    hidden_size
        Features of a hidden state.
    device
        Device of the sums; it must support float64, which MPS does not.
    """

    def __init__(self, vocab_size: int, hidden_size: int, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(vocab_size, hidden_size, dtype=torch.float64, device=device)
        """Sum of the states of each token."""
        self.counts = torch.zeros(vocab_size, dtype=torch.int64, device=device)
        """Number of the states of each token."""

    def add(self, hidden: Tensor, tokens: Tensor) -> None:
        """Add hidden states of shape ``(T, d)`` to the sums of their tokens, int64 of shape ``(T,)``."""
        tokens = tokens.to(self.sums.device)
        values = hidden.detach().to(self.sums.device).to(torch.float64)
        self.sums.index_add_(0, tokens, values)
        self.counts += torch.bincount(tokens, minlength=len(self.counts))

    def means(self) -> tuple[Tensor, Tensor]:
        """Mean and number of the states of each token.

        Returns
        -------
        means
            float32, shape ``(vocab_size, d)``, on the CPU; NaN for a token that was never seen.
        counts
            int64, shape ``(vocab_size,)``, on the CPU.
        """
        means = (self.sums / self.counts[:, None]).to(torch.float32)
        return means.cpu(), self.counts.cpu()


def _check_sum(hidden: Tensor, packing: Packing) -> None:
    if packing.n_tokens != len(hidden):
        msg = f"lengths sum to {packing.n_tokens}, but there are {len(hidden)} tokens."
        raise ValueError(msg)
