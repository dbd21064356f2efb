"""How much genes attend to each other, averaged over cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from scfm._checks import check_memory
from scfm.batch import make_batch
from scfm.tasks.task import Resumable, SupportsForward

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch, TokenBlock
    from scfm.nn import AttentionTile
    from scfm.run import RunStats
    from scfm.run.engine import Forward

    Heads: TypeAlias = Literal["mean", "max"] | Sequence[int]

__all__ = ["Attention", "PairMeans", "SupportsAttention", "cell_weights", "over_heads"]

BATCH_TOKENS = 4096
"""Tokens of a batch: the weights of its cells take at most 4 × 4,096² bytes, 64 MiB, when heads are averaged."""
PAIR_BYTES = 12
"""Of a sum and a count."""


class SupportsAttention(SupportsForward, Protocol):
    """Recipe of a model with attention."""

    def attention_tiles(self, network: torch.nn.Module, batch: TokenBatch, options: Any) -> Iterator[AttentionTile]:
        """Attention weights of the last of the layers, tile by tile."""


def over_heads(weights: Tensor, heads: Heads) -> Tensor:
    """Mean or maximum over heads, or mean over some of them: ``(n_heads, …)`` → ``(…)``."""
    if isinstance(heads, str):
        return weights.mean(dim=0) if heads == "mean" else weights.amax(dim=0)
    return weights[list(heads)].mean(dim=0)


def cell_weights(
    recipe: SupportsAttention, network: torch.nn.Module, options: Any, block: TokenBlock
) -> Iterator[NDArray[np.float32]]:
    """Attention weights of each sequence of a block, float32, shape ``(n_heads, n_tokens, n_tokens)``."""
    import torch

    with torch.inference_mode():
        for sequence in range(len(block.offsets) - 1):
            tiles = list(recipe.attention_tiles(network, make_batch(block, np.array([sequence])), options))
            none = [torch.empty(0, 0, 0)]  # of a cell without tokens
            yield torch.cat([tile.weights.cpu() for tile in tiles] or none, dim=1).numpy()


class PairMeans:
    """Mean weight of each pair of genes over the cells of each group that express both.

    Parameters
    ----------
    queries, keys
        Tokens of the genes that attend, and of those that are attended to; sorted.
    groups
        Group of each cell of the source, −1 for none.
    n_groups
        Number of groups.

    Raises
    ------
    ValueError
        If the sums would not fit into memory.
    """

    def __init__(
        self, queries: NDArray[np.int32], keys: NDArray[np.int32], groups: NDArray[np.int64], n_groups: int
    ) -> None:
        shape = (n_groups, len(queries), len(keys))
        what = f"The attention of {len(queries):,} genes to {len(keys):,} in {n_groups} groups of cells"
        check_memory(PAIR_BYTES * n_groups * len(queries) * len(keys), what, "Name fewer genes=, or leave groupby out.")
        self.queries, self.keys, self._groups = queries, keys, groups
        self.sums, self.counts = np.zeros(shape), np.zeros(shape, np.int32)
        self._special_sums: dict[int, float] = {}
        self._n_queries = 0

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Add the weights of each token on the tokens of its cell, shape ``(n_tokens, longest)``."""
        first = 0
        for row, n in zip(batch.rows, batch.lengths.tolist(), strict=True):
            cell = slice(first, first + n)
            self._add(int(self._groups[row]), batch.tokens[cell], output[cell, :n].numpy())
            first += n

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Nothing is held back."""

    def added(self) -> dict[str, NDArray[Any]]:
        """Everything that was added up, by name."""
        return {
            "sums": self.sums,
            "counts": self.counts,
            "special_tokens": np.array(list(self._special_sums), np.int64),
            "special_sums": np.array(list(self._special_sums.values())),
            "n_queries": np.array(self._n_queries),
        }

    def restore(self, added: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what :meth:`added` gave."""
        self.sums, self.counts, self._n_queries = added["sums"], added["counts"], int(added["n_queries"])
        self._special_sums = dict(zip(added["special_tokens"].tolist(), added["special_sums"].tolist(), strict=True))

    def expressed(self) -> NDArray[np.int32]:
        """Tokens of the queries that any cell expresses: a gene attends to itself, too."""
        return self.queries[self.counts.any(axis=(0, 2))]

    def special_means(self) -> dict[int, float]:
        """Mean weight of the queries on each token that is no gene."""
        return {token: total / max(self._n_queries, 1) for token, total in sorted(self._special_sums.items())}

    def _add(self, group: int, tokens: NDArray[np.int64], weights: NDArray[np.float32]) -> None:
        is_query, is_gene = np.isin(tokens, self.queries), np.isin(tokens, self.keys)
        if group < 0 or not is_query.any():
            return
        weights = weights[is_query].astype(np.float64)
        for token, total in zip(tokens[~is_gene].tolist(), weights[:, ~is_gene].sum(axis=0).tolist(), strict=True):
            self._special_sums[token] = self._special_sums.get(token, 0.0) + total
        self._n_queries += len(weights)
        among_genes = weights[:, is_gene] / weights[:, is_gene].sum(axis=1, keepdims=True)
        rows, columns = (
            np.searchsorted(*pair) for pair in ((self.queries, tokens[is_query]), (self.keys, tokens[is_gene]))
        )
        pairs = np.ix_(np.array([group]), rows, columns)
        self.sums[pairs] += among_genes
        self.counts[pairs] += 1


class Attention(Resumable):
    """Attention weights between genes, into a :class:`PairMeans`.

    Parameters
    ----------
    recipe, options
        The model, and the options of the run; the weights are those of the last layer that is run.
    heads
        How heads are joined; see :func:`over_heads`.
    pairs
        Receives the weights.
    """

    done = "averaged the attention of"
    batch_tokens = BATCH_TOKENS
    block_rows = 256  # results can be put aside between two blocks
    empty_rows = "without attention"

    def __init__(self, recipe: SupportsAttention, options: Any, heads: Heads, pairs: PairMeans) -> None:
        super().__init__(pairs)
        self._recipe, self._options, self._heads, self._pairs = recipe, options, heads, pairs

    def edit(self, block: TokenBlock) -> Iterable[TokenBlock]:
        """The cells that express one of the genes that attend."""
        before = np.concatenate([[0], np.cumsum(np.isin(block.tokens, self._pairs.queries))])
        kept = np.diff(before[block.offsets]) > 0
        return (block if kept.all() else _some(block, kept),)

    def sums(self) -> dict[str, NDArray[Any]]:
        """Sums of weights and numbers of cells."""
        return self._pairs.added()

    def restore(self, sums: Mapping[str, NDArray[Any]]) -> None:
        """Go on from them."""
        self._pairs.restore(sums)

    def make_forward(self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Forward:
        """Weights of each token on the tokens of its cell, float32, shape ``(n_tokens, longest)``, zeros behind its end."""
        return lambda batch: self._weights(network, batch)

    def _weights(self, network: torch.nn.Module, batch: TokenBatch) -> Tensor:
        import torch

        found = torch.zeros(len(batch.tokens), int(batch.lengths.max()))
        firsts = batch.firsts
        for cell, start, weights in self._recipe.attention_tiles(network, batch, self._options):
            rows = slice(firsts[cell] + start, firsts[cell] + start + weights.shape[1])
            found[rows, : weights.shape[2]] = over_heads(weights, self._heads).cpu()
        return found


def _some(block: TokenBlock, kept: NDArray[np.bool_]) -> TokenBlock:
    """Some of the cells of a block."""
    from scfm._types import TokenBlock

    lengths = np.diff(block.offsets)
    tokens = np.repeat(kept, lengths)
    return TokenBlock(
        block.row0,
        block.tokens[tokens],
        np.concatenate([[0], np.cumsum(lengths[kept])]),
        np.empty(0, np.int64),
        None if block.values is None else block.values[tokens],
        rows=block.row0 + np.flatnonzero(kept),
    )
