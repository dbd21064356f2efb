"""Rank value encoding (Geneformer, scCello): the genes of a cell, most characteristic first.

A gene is ranked by its count over the cell's total, over the gene's non-zero median in the pretraining corpus
(Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9). The total is the same for all genes of a cell and does not
change their order, so it enters only where upstream's rounding is to be reproduced.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from scfm._types import TokenBlock
from scfm.encode._rows import compact, count_genes, in_threads
from scfm.encode.rank_kernels import encode_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm._types import CountBlock

__all__ = ["Depth", "ObsDepth", "RankEncoder", "VocabularyDepth"]


class Depth(Protocol):
    """Sequencing depth of the cells, for upstream's rounding.

    A count is multiplied by the factor of its cell, by ``scale``, and by 1 / median, in this order.
    """

    scale: ClassVar[float]
    keep_zeros: ClassVar[bool]
    """Whether explicit zeros are encoded, too, at the end of a cell."""

    def factors(self, block: CountBlock) -> tuple[NDArray[np.float64], bool]:
        """Give the factors of the rows of a block, and whether the first two products are rounded to float32."""


@dataclass(frozen=True)
class ObsDepth:
    """Totals over all genes, from a column of ``obs``, as Geneformer's tokenizer takes them.

    ``v = fl(fl(fl(x · fl(1/n)) · 10000) · fl(1/median))`` where the products with ``n`` are float32 if counts and
    totals are float32, else float64.
    """

    totals: NDArray[np.generic]
    """``obs["n_counts"]`` of the whole source, in its own dtype, shape ``(n_obs,)``."""
    scale: ClassVar[float] = 10_000.0
    keep_zeros: ClassVar[bool] = True

    def factors(self, block: CountBlock) -> tuple[NDArray[np.float64], bool]:
        """Give 1 / total of each row."""
        totals = self.totals[block.row0 : block.row0 + block.n_cells]
        single = totals.dtype == np.float32 and block.data.dtype == np.float32
        with np.errstate(divide="ignore"):
            inverse = np.reciprocal(totals.astype(np.float32 if single else np.float64))
        return inverse.astype(np.float64), single


@dataclass(frozen=True)
class VocabularyDepth:
    """Totals over the genes of the model, as scCello's data preparation takes them.

    ``v = fl(fl(x · fl(10000/n)) · fl(1/median))`` where the product with ``n`` is float32 if the counts are, else
    float64. Stored zeros are left out.
    """

    column_tokens: NDArray[np.int32]
    """Token of each column of the source, below 0 where the model has none; shape ``(n_vars,)``."""
    scale: ClassVar[float] = 1.0
    keep_zeros: ClassVar[bool] = False

    def factors(self, block: CountBlock) -> tuple[NDArray[np.float64], bool]:
        """Give 10,000 / total of each row."""
        single = block.data.dtype == np.float32
        inside = np.where(self.column_tokens[block.indices] >= 0, block.data, 0)
        rows = np.repeat(np.arange(block.n_cells), np.diff(block.indptr))
        totals = np.bincount(rows, weights=inside, minlength=block.n_cells)
        totals[totals == 0] = 1
        factors = np.divide(10_000, totals, dtype=np.float32 if single else np.float64)
        return factors.astype(np.float64), single


@dataclass(frozen=True)
class RankEncoder:
    """Encode blocks of counts by rank value encoding.

    Ties are broken by vocabulary order, so the tokens of a cell depend on its counts alone.

    Parameters
    ----------
    column_tokens
        Token of each column of the source, −1 where the model has none; shape ``(n_vars,)``.
    medians
        Median by token id, shape ``(vocabulary size,)``, counts per 10,000; NaN for special tokens.
    max_tokens
        Longest sequence, special tokens included.
    first, last
        Special tokens before and after the genes of each cell, −1 for none.
    merge
        Add up the counts of columns that share a token.
    upstream
        Totals that reproduce upstream's rounding; ``None`` ranks by ``x / median`` in float64.
    keep_cells
        Mask of the cells to encode, shape ``(n_obs,)``; the others get no tokens. ``None``: all.
    threads
        Threads that encode one block together.

    Raises
    ------
    ValueError
        On calling, if a count is negative, infinite or NaN; the message gives row, column and value.
    """

    column_tokens: NDArray[np.int32]
    medians: NDArray[np.float64]
    max_tokens: int
    first: int = -1
    last: int = -1
    merge: bool = True
    upstream: Depth | None = None
    keep_cells: NDArray[np.bool_] | None = None
    threads: int = 1
    _factors: NDArray[np.float64] = field(init=False, repr=False)
    _merge: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_tokens < 1 + (self.first >= 0) + (self.last >= 0):
            msg = f"max_tokens={self.max_tokens} leaves no space for a gene between the special tokens."
            raise ValueError(msg)
        used = self.column_tokens[self.column_tokens >= 0]
        repeated = len(np.unique(used)) < len(used)
        object.__setattr__(self, "_factors", 1.0 / self.medians)
        object.__setattr__(self, "_merge", self.merge and repeated)

    def __call__(self, block: CountBlock) -> TokenBlock:
        """Encode one block; row order is kept."""
        data = block.data if block.data.dtype == np.float32 else block.data.astype(np.float64)
        n_specials = (self.first >= 0) + (self.last >= 0)
        keep = self.max_tokens - n_specials
        keep_zeros = self.upstream is not None and self.upstream.keep_zeros
        counts = count_genes(block, data, self.column_tokens, keep_zeros=keep_zeros, threads=self.threads)
        depth, single, scale = np.empty(0), False, 1.0
        if self.upstream is not None:
            scale = self.upstream.scale
            depth, single = self.upstream.factors(block)
        offsets = np.zeros(block.n_cells + 1, np.int64)
        np.cumsum(np.minimum(counts, keep) + n_specials, out=offsets[1:])
        tokens = np.empty(offsets[-1], np.int32)
        lengths, n_genes = np.empty_like(counts), np.empty_like(counts)
        specials = (self.first, self.last)
        scaling = (self.column_tokens, self._factors, depth, scale, single, keep_zeros, self._merge)

        def encode(rows: tuple[int, int]) -> None:
            csr = (block.indptr, block.indices, data)
            encode_rows(*csr, *rows, *scaling, keep, *specials, offsets, tokens, lengths, n_genes)

        in_threads(encode, block.indptr, self.threads)
        if self.keep_cells is not None:
            dropped = ~self.keep_cells[block.row0 : block.row0 + block.n_cells]
            lengths[dropped], n_genes[dropped] = 0, -1
        (tokens,) = compact(offsets, lengths, tokens)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return TokenBlock(block.row0, tokens, offsets, n_genes)
