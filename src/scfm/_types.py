"""The messages that pass between the steps, one frozen dataclass each.

Every step of the pipeline takes one of these and returns the next one; the folders of the package are the steps. The
types of arguments that several folders take are here, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Compat", "CountBlock", "Quantization", "TokenBatch", "TokenBlock"]

Compat = Literal["upstream"]
"""Value of ``compat=``: do as the original code does."""
Quantization = Literal["int8", "int8_dynamic", "nf4"]
"""Value of ``quantize=``: how weights of linear layers are kept."""


@dataclass(frozen=True, slots=True)
class CountBlock:
    """Counts of consecutive cells as the parts of a CSR matrix (``read`` → ``encode``).

    Column indices refer to the columns of the source (its ``var``). Within a row they may come in any order; no
    column is stored twice. Explicit zeros are kept as they are stored.
    """

    row0: int
    """Position of the first cell of the block in the source."""
    indptr: NDArray[np.int64]
    """Row borders, shape ``(n_cells + 1,)``; starts at 0."""
    indices: NDArray[np.int32]
    """Column of each stored value, shape ``(nnz,)``."""
    data: NDArray[np.generic]
    """Stored values in the dtype of the source, shape ``(nnz,)``."""
    totals: NDArray[np.float64]
    """Total count of each cell over *all* genes of the source, shape ``(n_cells,)``."""

    @property
    def n_cells(self) -> int:
        """Number of cells of the block."""
        return len(self.indptr) - 1


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """Token sequences of consecutive cells, flat (``encode`` → ``edit`` → ``batch``).

    An encoder makes one sequence a cell. A task may make others of them, also several a cell, and then says in ``rows``
    which cell each belongs to.
    """

    row0: int
    """Position of the first cell of the block in the source."""
    tokens: NDArray[np.int32]
    """Token ids of all cells one after the other, special tokens included, shape ``(n_tokens,)``."""
    offsets: NDArray[np.int64]
    """Sequence ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``; shape ``(n_sequences + 1,)``."""
    n_genes: NDArray[np.int64]
    """Model genes found in each cell before truncation, shape ``(n_cells,)``; 0 marks an empty cell, −1 one that an
    option of the model left out, which has no tokens."""
    values: NDArray[np.float32] | None = None
    """Value that the network reads with each token (a count, a bin), shape ``(n_tokens,)``; ``None`` if it reads tokens alone."""
    rows: NDArray[np.int64] | None = None
    """Position in the source of the cell of each sequence, shape ``(n_sequences,)``; ``None``: one a cell, from ``row0`` on."""
    tags: NDArray[np.int64] | None = None
    """A number that the task gives to each sequence, shape ``(n_sequences,)``, such as the gene that was changed."""
    n_fractional: int = 0
    """Cells of the block with a count that is not a whole number."""

    @property
    def n_cells(self) -> int:
        """Number of cells of the block."""
        return len(self.n_genes)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Sequences that go through the network together, packed without padding (``batch`` → ``nn``)."""

    rows: NDArray[np.int64]
    """Position in the source of the cell of each sequence, shape ``(n_sequences,)``."""
    tokens: NDArray[np.int64]
    """Token ids of the sequences one after the other, shape ``(n_tokens,)``."""
    lengths: NDArray[np.int64]
    """Tokens of each sequence, shape ``(n_sequences,)``, longest first."""
    values: NDArray[np.float32] | None = None
    """Value of each token, shape ``(n_tokens,)``; ``None`` if the network reads tokens alone."""
    tags: NDArray[np.int64] | None = None
    """Number that the task gave to each sequence, shape ``(n_sequences,)``."""

    @property
    def firsts(self) -> NDArray[np.int64]:
        """Position of the first token of each sequence, shape ``(n_sequences,)``."""
        firsts: NDArray[np.int64] = self.lengths.cumsum() - self.lengths
        return firsts

    def split(self) -> tuple[TokenBatch, TokenBatch]:
        """Two batches of half the sequences each."""
        middle = (len(self.rows) + 1) // 2
        at = int(self.lengths[:middle].sum())
        return self._part(slice(middle), slice(at)), self._part(slice(middle, None), slice(at, None))

    def _part(self, sequences: slice, tokens: slice) -> TokenBatch:
        return TokenBatch(
            self.rows[sequences],
            self.tokens[tokens],
            self.lengths[sequences],
            None if self.values is None else self.values[tokens],
            None if self.tags is None else self.tags[sequences],
        )
