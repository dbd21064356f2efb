"""States and vectors of genes, computed when a gene first occurs and then cached."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from scfm.nn.device import to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["GENE_VECTORS", "GeneRows", "GeneVectors", "gene_vectors"]

GENE_VECTORS = "gene_embeddings.embedding.weight"
"""Published name of the table of gene vectors."""

FIRST_ROWS = 1024
AT_ONCE = 4096


class GeneRows:
    """Cache of states by token.

    A network that turns the vector of a gene into a state does so once per gene, not once per cell and gene. Nothing is
    cached while gradients are recorded.

    Parameters
    ----------
    n_tokens
        Number of tokens.
    """

    def __init__(self, n_tokens: int) -> None:
        self._place = np.full(n_tokens, -1)  # an array: a tensor made in inference mode could not be changed later
        self._made_of: object = None
        self._table: Tensor | None = None
        self._n_rows = 0

    def __call__(
        self,
        tokens: Tensor,
        make: Callable[[Tensor], Tensor],
        weights: Iterable[Tensor] = (),
        *,
        keep: bool = True,
    ) -> Tensor:
        """States of tokens (int64 on the CPU), shape ``(T, d)``.

        Parameters
        ----------
        tokens
            Tokens, in any order, with repeats.
        make
            Computes the states of distinct tokens, ``(n,)`` → ``(n, d)``.
        weights
            Tensors that the states depend on; when one changes, the cache is emptied.
        keep
            Use the cache; only right if the states depend on nothing but ``weights``.

        Raises
        ------
        IndexError
            If a token is not in the table.
        """
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(self._place):
            msg = f"tokens run from {int(tokens.min())} to {int(tokens.max())}; the table has {len(self._place)} rows."
            raise IndexError(msg)
        if torch.is_grad_enabled() or not keep or not len(tokens):
            distinct, inverse = torch.unique(tokens, return_inverse=True)
            states = make(distinct)
            return states[inverse.to(states.device)]
        made_of = [(id(weight), _version(weight), weight.dtype, weight.device) for weight in weights]
        if made_of != self._made_of:
            self._made_of, self._table, self._n_rows = made_of, None, 0
            self._place.fill(-1)
        # a table made in inference mode could not take rows outside of it
        with torch.inference_mode(False), torch.no_grad():
            new = np.unique(tokens.numpy()[self._place[tokens.numpy()] < 0])
            for part in torch.from_numpy(new).split(AT_ONCE):
                self._add(part, make(part))
        table = cast("Tensor", self._table)
        return table[to_device(torch.from_numpy(self._place[tokens.numpy()]), table.device)]

    def _add(self, tokens: Tensor, made: Tensor) -> None:
        stop = self._n_rows + len(tokens)
        if self._table is None or stop > len(self._table):
            capacity = min(max(FIRST_ROWS, 2 * stop), len(self._place))
            table = made.new_empty(capacity, made.shape[1])
            if self._table is not None:
                table[: self._n_rows] = self._table[: self._n_rows]
            self._table = table
        self._table[self._n_rows : stop] = made
        self._place[tokens.numpy()] = np.arange(self._n_rows, stop)
        self._n_rows = stop


def gene_vectors(tensors: Mapping[str, Tensor]) -> Tensor:
    """The table of gene vectors of a published state dict.

    Raises
    ------
    ValueError
        If it does not hold floating point numbers.
    """
    vectors = tensors[GENE_VECTORS]
    if not vectors.is_floating_point():
        msg = f"{GENE_VECTORS} holds {vectors.dtype}, expected floating point numbers: the weights are damaged."
        raise ValueError(msg)
    return vectors


def _version(weight: Tensor) -> int:
    """Version counter of a tensor; −1 for inference tensors, which have none."""
    return -1 if weight.is_inference() else weight._version


class GeneVectors(nn.Module):
    """Frozen vectors of genes, zero for the assay tokens after them; copied to the device as genes occur.

    Parameters
    ----------
    tensors
        Published state dict.
    n_assays
        Number of assay tokens.
    """

    pads = False
    """Whether cells are padded on an accelerator; read when batches are planned."""

    def __init__(self, tensors: Mapping[str, Tensor], n_assays: int) -> None:
        super().__init__()
        self._vectors = gene_vectors(tensors)
        self.register_buffer("like", torch.empty(0))
        self._rows = GeneRows(len(self._vectors) + n_assays)

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors of tokens, shape ``(T, d)``; a copy."""
        return self._rows(tokens, self._look_up, self.buffers())

    def _look_up(self, tokens: Tensor) -> Tensor:
        is_gene = tokens < len(self._vectors)
        vectors = self._vectors[torch.where(is_gene, tokens, 0)] * is_gene[:, None]
        return vectors.to(self.like)  # type: ignore[arg-type]
