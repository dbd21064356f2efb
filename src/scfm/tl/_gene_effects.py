"""What the change of a gene does to the states of the other genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._checks import check_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

__all__ = ["GeneEffects"]

ENTRY_BYTES = 12
"""Of a sum and a count."""


class GeneEffects:
    """Mean over cells of one minus the cosine of the states of a gene in cell and changed copy.

    Parameters
    ----------
    tags
        Tags of the copies, sorted.
    tokens
        Tokens of the genes that may be affected, sorted.

    Raises
    ------
    ValueError
        If the sums would not fit into memory.
    """

    def __init__(self, tags: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        what = f"gene_effects=True for {len(tags):,} perturbations and {len(tokens):,} genes"
        check_memory(ENTRY_BYTES * len(tags) * len(tokens), what, "Name fewer genes=.")
        self.tags, self.tokens = tags, tokens
        shape = (len(tags), len(tokens))
        self.arrays: dict[str, NDArray[Any]] = {"sums": np.zeros(shape), "counts": np.zeros(shape, np.int32)}
        """What is added up over the cells, by name."""

    def __call__(self, tag: int, tokens: NDArray[np.int64], effects: NDArray[np.float64]) -> None:
        """Add the effects of one copy."""
        row, columns = np.searchsorted(self.tags, tag), np.searchsorted(self.tokens, tokens)
        np.add.at(self.arrays["sums"][row], columns, effects)
        np.add.at(self.arrays["counts"][row], columns, 1)

    def matrices(self) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Means, float32, and numbers of cells, int32; both of shape ``(n_tags, n_tokens)``, stored where there is any cell."""
        from scipy import sparse

        seen, shape = self.arrays["counts"].nonzero(), self.arrays["counts"].shape
        counts = self.arrays["counts"][seen]
        means = (self.arrays["sums"][seen] / counts).astype(np.float32)
        return sparse.csr_matrix((means, seen), shape=shape), sparse.csr_matrix((counts, seen), shape=shape)
