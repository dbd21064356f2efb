"""Rows of a table that are computed when they are first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["GENE_VECTORS", "GeneRows", "GeneVectors"]

GENE_VECTORS = "gene_embeddings.embedding.weight"
"""Published name of the table of gene vectors."""

FIRST_ROWS = 1024
AT_ONCE = 4096


class GeneRows:
    """States by token, made for each token once.

    A network that turns the vector of a gene into a state does so once per gene, not once per cell and gene. While
    gradients are recorded nothing is kept, because the states change.

    Parameters
    ----------
    n_tokens
        Number of tokens.
    make
        States of distinct tokens, ``(n,)`` → ``(n, d)``.
    """

    def __init__(self, n_tokens: int, make: Callable[[Tensor], Tensor]) -> None:
        self._make = make
        self._place = torch.full((n_tokens,), -1, dtype=torch.int64, device="cpu")
        self._table: Tensor | None = None
        self._n_rows = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        """States of tokens (int64 on the CPU), shape ``(T, d)``.

        Raises
        ------
        IndexError
            If a token is not in the table.
        """
        if torch.is_grad_enabled():
            distinct, inverse = torch.unique(tokens, return_inverse=True)
            made = self._make(distinct)
            return made[inverse.to(made.device)]
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(self._place):
            msg = f"tokens run from {int(tokens.min())} to {int(tokens.max())}; the table has {len(self._place)} rows."
            raise IndexError(msg)
        new = torch.unique(tokens[self._place[tokens] < 0])
        for part in new.split(AT_ONCE):
            self._add(part)
        table = self._table if self._table is not None else self._make(tokens)
        return table[self._place[tokens].to(table.device)]

    def _add(self, tokens: Tensor) -> None:
        if not len(tokens):
            return
        made = self._make(tokens)
        stop = self._n_rows + len(tokens)
        if self._table is None or stop > len(self._table):
            room = min(max(FIRST_ROWS, 2 * stop), len(self._place))
            table = made.new_empty(room, made.shape[1])
            if self._table is not None:
                table[: self._n_rows] = self._table[: self._n_rows]
            self._table = table
        self._table[self._n_rows : stop] = made
        self._place[tokens] = torch.arange(self._n_rows, stop)
        self._n_rows = stop


class GeneVectors(nn.Module):
    """The frozen vectors of genes, zero for the assay tokens behind them; moved to the device as genes occur.

    Parameters
    ----------
    tensors
        Published state dict.
    n_assays
        Number of assay tokens.
    """

    def __init__(self, tensors: Mapping[str, Tensor], n_assays: int) -> None:
        super().__init__()
        self._vectors = tensors[GENE_VECTORS]
        self.register_buffer("like", torch.empty(0))
        self._rows = GeneRows(len(self._vectors) + n_assays, self._moved)

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors of tokens, shape ``(T, d)``; a copy."""
        return self._rows(tokens)

    def _moved(self, tokens: Tensor) -> Tensor:
        is_gene = tokens < len(self._vectors)
        vectors = self._vectors[torch.where(is_gene, tokens, 0)] * is_gene[:, None]
        return vectors.to(self.like)  # type: ignore[arg-type]
