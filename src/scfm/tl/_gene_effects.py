"""What the change of a gene does to the states of the other genes."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._checks import check_memory
from scfm._keys import ON_GENES

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
        shape = (len(tags), len(tokens))
        self.arrays: dict[str, NDArray[Any]] = {
            "sums": np.zeros(shape),
            "squares": np.zeros(shape),
            "counts": np.zeros(shape, np.int32),
        }
        """What is added up over the cells, by name."""
        self._lock = Lock()  # each device has a thread

    def __call__(self, tag: int, tokens: NDArray[np.int64], effects: NDArray[np.float64]) -> None:
        """Add the effects of one copy."""
        row, columns = np.searchsorted(self.tags, tag), np.searchsorted(self.tokens, tokens)
        with self._lock:
            for name, added in (("sums", effects), ("squares", effects**2), ("counts", 1)):
                np.add.at(self.arrays[name][row], columns, added)

    def matrices(self) -> dict[str, sparse.csr_matrix]:
        """Means, standard deviations (``"_sd"``) and numbers of cells (``"_n"``), by the ending of their field.

        Shape ``(n_tags, n_tokens)``, float32 and int32, stored where there is any cell.
        """
        from scipy import sparse

        counted = self.arrays["counts"]
        seen, shape = counted.nonzero(), counted.shape
        counts = counted[seen]
        means = self.arrays["sums"][seen] / counts
        sds = np.sqrt(np.maximum(self.arrays["squares"][seen] / counts - means**2, 0))
        values = dict(zip(ON_GENES, (means.astype(np.float32), sds.astype(np.float32), counts), strict=True))
        return {ending: sparse.csr_matrix((one, seen), shape=shape) for ending, one in values.items()}
