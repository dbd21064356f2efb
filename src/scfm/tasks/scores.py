"""Log-likelihoods of cells under a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scfm.run.sinks import GeneStatesSink
from scfm.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from scipy import sparse
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.run.engine import Forward, RunStats

__all__ = ["Scorer", "Scores"]


class Scorer(Protocol):
    """Computes log-likelihoods of the genes in the cells of a batch."""

    def __call__(self, network: torch.nn.Module, batch: TokenBatch) -> Tensor:
        """Log-likelihoods of the count and of the gene of each token, and 1; zeros where it is no gene, ``(n_tokens, 3)``."""


class SupportsScoring(Protocol):
    """Recipe of a model that computes log-likelihoods."""

    def scorer(self, options: Any, device: torch.device, dtype: torch.dtype) -> Scorer:
        """Return the function that computes log-likelihoods."""


class Scores(Task):
    """Log-likelihoods of counts and of genes: means over the genes of each cell and, on request, the values of each gene.

    The forward pass returns two values for each token, and whether it is a gene. Means over genes go to :attr:`values`;
    the values of chosen genes are collected by the sink of gene states, as states with two features.

    Parameters
    ----------
    recipe, options
        The model, and the options of the run.
    n_obs
        Number of cells of the source.
    gene_tokens
        Token of each column of :meth:`by_gene`, −1 for none, shape ``(n_genes,)``; ``None``: only means are kept.
    """

    done = "scored"
    empty_rows = "NaN"

    def __init__(
        self, recipe: SupportsScoring, options: Any, n_obs: int, gene_tokens: NDArray[np.int32] | None = None
    ) -> None:
        self._kept = _Kept(n_obs, 0 if gene_tokens is None else len(gene_tokens))
        sink = _ScoresSink(n_obs, None if gene_tokens is None else GeneStatesSink(gene_tokens, self._kept))
        super().__init__(sink)
        self.values = sink.values
        """Means by cell, float32, shape ``(n_obs, 2)``; NaN for a cell without a gene."""
        self._recipe, self._options = recipe, options

    def make_forward(self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Forward:
        """Forward pass through the layers and the heads of the model."""
        scorer = self._recipe.scorer(self._options, device, dtype)
        return lambda batch: scorer(network, batch)

    def by_gene(self) -> list[sparse.csr_matrix]:
        """The two values of each gene in each cell, float32, shape ``(n_obs, n_genes)``; no entry for genes not read."""
        return self._kept.matrices()


class _ScoresSink:
    """Averages the values of the genes of each cell, and passes them on."""

    def __init__(self, n_obs: int, genes: GeneStatesSink | None) -> None:
        self.values: NDArray[np.float32] = np.full((n_obs, 2), np.nan, dtype=np.float32)
        self._genes = genes

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Take the values of all tokens, ``(n_tokens, 3)``."""
        values = output.double().cpu().numpy()
        is_gene = values[:, 2] > 0
        cells = np.repeat(np.arange(len(batch.rows)), batch.lengths)[is_gene]
        count = np.bincount(cells, minlength=len(batch.rows))
        sums = [np.bincount(cells, weights=column, minlength=len(batch.rows)) for column in values[is_gene, :2].T]
        with np.errstate(invalid="ignore"):  # a cell without genes
            self.values[batch.rows] = np.stack(sums, axis=1) / count[:, None]
        if self._genes is not None:
            self._genes.write(batch, output[:, :2])

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Pass on the values of the block."""
        if self._genes is not None:
            self._genes.end_block(stop, stats)


class _Kept:
    """Collects values of genes, in the order of the cells."""

    def __init__(self, n_cells: int, n_genes: int) -> None:
        self._shape = n_cells, n_genes
        empty = np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 2), np.float32)
        self._parts: list[tuple[NDArray[Any], ...]] = [empty]

    def append(self, cells: NDArray[np.int64], genes: NDArray[np.int64], states: NDArray[np.float32]) -> None:
        """Keep the values of one block."""
        self._parts.append((cells, genes, states))

    def matrices(self) -> list[sparse.csr_matrix]:
        """One matrix for each of the two values."""
        from scipy import sparse

        cells, genes, values = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
        indptr = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=self._shape[0]))])
        return [sparse.csr_matrix((column.copy(), genes, indptr), shape=self._shape) for column in values.T]
