"""Expression sequences (TranscriptFormer): the expressed genes of a cell in a given order, with their counts.

A cell is ``[assay] [START] g₀ g₁ …``; the network reads a count with every token, 1 for the assay and ``[START]``
(Pearce et al. 2025, doi:10.1101/2025.04.25.650731). The assay token is left out where the assay is not known, which
has the effect of the attention mask that the published code puts on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from scfm._types import TokenBlock
from scfm.encode._rows import compact, count_genes, in_threads
from scfm.encode.order_kernels import BY_COLUMN, BY_VALUE, SHUFFLED, order_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm._types import CountBlock

__all__ = ["GeneOrder", "OrderEncoder"]

GeneOrder = Literal["input", "vocabulary", "expression", "random"]
_MODES = {"input": BY_COLUMN, "vocabulary": BY_COLUMN, "expression": BY_VALUE, "random": SHUFFLED}


@dataclass(frozen=True)
class OrderEncoder:
    """Encode blocks of counts as sequences of genes with counts.

    Parameters
    ----------
    column_tokens
        Token of each column of the source, −1 where the model has none; shape ``(n_vars,)``.
    max_genes
        Genes of a cell that are kept.
    start
        Token put before the genes of each cell.
    prefix
        Token put before ``start``, one for each cell of the source, −1 for none; shape ``(n_obs,)``.
    order
        ``"input"``: as the columns of the source. ``"vocabulary"``: by token. ``"expression"``: largest count first,
        ties by token. ``"random"``: shuffled by ``seed`` and what the cell holds (its tokens and their counts).
    read_last
        Whether a cell of ``max_genes`` genes has its last gene among the tokens; without it, that gene counts for
        ``scale`` only (the published network predicts it, but never reads it).
    clip, scale
        Largest count, and sum to which the counts of the kept genes are scaled before that; 0 for neither.
    seed
        Seed of ``order="random"``.
    distinct
        Token whose columns are not added up although they share it (the token of unknown genes); −1 for none.
    keep_cells
        Mask of the cells to encode, shape ``(n_obs,)``; the others get no tokens. ``None``: all.
    min_genes
        Cells with fewer expressed genes get no tokens.
    pad
        Token that fills every cell up to ``max_genes``, with count 0; −1 for none.
    threads
        Threads that encode one block together.

    Raises
    ------
    ValueError
        On calling, if a count is negative, infinite or NaN; the message gives row, column and value.
    """

    column_tokens: NDArray[np.int32]
    max_genes: int
    start: int
    prefix: NDArray[np.int32]
    order: GeneOrder = "input"
    read_last: bool = False
    clip: float = 0.0
    scale: float = 0.0
    seed: int = 0
    distinct: int = -1
    keep_cells: NDArray[np.bool_] | None = None
    min_genes: int = 0
    pad: int = -1
    threads: int = 1
    _slots: NDArray[np.int32] = field(init=False, repr=False)
    _merge: bool = field(init=False, repr=False)
    _keys: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n_columns = len(self.column_tokens)
        columns = np.arange(n_columns, dtype=np.int32)
        merged = (self.column_tokens >= 0) & (self.column_tokens != self.distinct)
        slots = np.where(self.column_tokens >= 0, columns, np.int32(-1)).astype(np.int32)
        _, first, inverse = np.unique(self.column_tokens[merged], return_index=True, return_inverse=True)
        slots[merged] = columns[merged][first[inverse]]  # a gene is known by the first of its columns
        keys = slots.astype(np.int64) if self.order == "input" else self._token_keys(slots)
        object.__setattr__(self, "_slots", slots)
        object.__setattr__(self, "_merge", len(first) < np.count_nonzero(merged))
        object.__setattr__(self, "_keys", keys)

    def __call__(self, block: CountBlock) -> TokenBlock:
        """Encode one block; row order is kept."""
        data = block.data if block.data.dtype == np.float32 else block.data.astype(np.float64)
        expressed = count_genes(block, data, self._slots, keep_zeros=False, threads=self.threads)
        rows = slice(block.row0, block.row0 + block.n_cells)
        fed = self.max_genes if self.read_last else self.max_genes - 1
        capacity = np.minimum(expressed, fed) if self.pad < 0 else np.full(block.n_cells, fed, np.int64)
        has_prefix = self.prefix[rows] >= 0
        offsets = np.zeros(block.n_cells + 1, np.int64)
        np.cumsum(capacity + 1 + has_prefix, out=offsets[1:])
        tokens = np.full(offsets[-1], self.pad, np.int32)
        counts = np.zeros(offsets[-1], np.float32)
        starts = offsets[:-1] + has_prefix
        tokens[offsets[:-1][has_prefix]] = self.prefix[rows][has_prefix]
        tokens[starts] = self.start
        counts[offsets[:-1]] = counts[starts] = 1
        n_genes = np.empty(block.n_cells, np.int64)
        genes = (self._slots, self._merge, self.column_tokens, self._keys)
        limits = (self.max_genes, fed, float(self.scale), float(self.clip) if self.clip > 0 else -1.0)

        def encode(rows: tuple[int, int]) -> None:
            csr = (block.indptr, block.indices, data)
            mode = (_MODES[self.order], self.seed)
            order_rows(*csr, *rows, *genes, *mode, *limits, tokens, counts, starts + 1, n_genes)

        in_threads(encode, block.indptr, self.threads)
        dropped = n_genes < self.min_genes
        if self.keep_cells is not None:
            dropped |= ~self.keep_cells[rows]
        filled = np.minimum(n_genes, fed) if self.pad < 0 else capacity
        lengths = np.where(dropped, 0, filled + 1 + has_prefix)
        tokens, counts = compact(offsets, lengths, tokens, counts)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return TokenBlock(block.row0, tokens, offsets, np.where(dropped, -1, n_genes), counts)

    def _token_keys(self, slots: NDArray[np.int32]) -> NDArray[np.int64]:
        """Sort keys by token; ranks by token and column where columns of one token stay apart."""
        if self.distinct < 0:
            return self.column_tokens.astype(np.int64)
        ranks = np.empty(len(slots), np.int64)
        ranks[np.lexsort((slots, self.column_tokens))] = np.arange(len(slots))
        return ranks[np.maximum(slots, 0)]
