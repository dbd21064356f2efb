"""What the change of a gene does to the states of the other genes."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from scfm._checks import check_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

__all__ = ["GeneEffects"]

ENTRY_BYTES = 20
"""Of two sums and a count."""


class GeneEffects:
    """One minus the cosine of the states of a gene in cell and changed copy, over the cells.

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
        self._sums = np.zeros((len(tags), len(tokens)))
        self._squares = np.zeros((len(tags), len(tokens)))
        self._counts = np.zeros((len(tags), len(tokens)), np.int32)
        self._lock = Lock()  # each device has a thread

    def __call__(self, tag: int, tokens: NDArray[np.int64], effects: NDArray[np.float64]) -> None:
        """Add the effects of one copy."""
        row, columns = np.searchsorted(self.tags, tag), np.searchsorted(self.tokens, tokens)
        with self._lock:
            np.add.at(self._sums[row], columns, effects)
            np.add.at(self._squares[row], columns, effects**2)
            np.add.at(self._counts[row], columns, 1)

    def matrices(self) -> dict[str, sparse.csr_matrix]:
        """Means, standard deviations (``"_sd"``) and numbers of cells (``"_n"``), by the ending of their field.

        Shape ``(n_tags, n_tokens)``, float32 and int32, stored where there is any cell.
        """
        from scipy import sparse

        seen = self._counts.nonzero()
        counts = self._counts[seen]
        means = self._sums[seen] / counts
        sds = np.sqrt(np.maximum(self._squares[seen] / counts - means**2, 0))
        values = {"": means.astype(np.float32), "_sd": sds.astype(np.float32), "_n": counts}
        shape = self._counts.shape
        return {ending: sparse.csr_matrix((one, seen), shape=shape) for ending, one in values.items()}
