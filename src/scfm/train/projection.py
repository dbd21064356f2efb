"""A fixed linear embedding: singular vectors of the log-normalised counts of a corpus, by which models are judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scfm._checks import check_least, check_share, typed
from scfm.genes import align
from scfm.read import JoinedSource, open_counts, paths_of
from scfm.read.errors import of_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from scfm.genes import Vocabulary
    from scfm.read import CountSource

__all__ = ["LinearProjection", "linear_projection"]

OVERSAMPLES = 10
"""Further directions that are followed, so that the last ones wanted are exact."""
ROWS = 2048
"""Cells of a block."""
HELD = 100_000_000
"""Values that are kept in memory between passes; a corpus with more is read anew."""


@dataclass(frozen=True)
class LinearProjection:
    """Loadings of genes.

    Parameters
    ----------
    vocabulary
        The genes.
    loadings
        Vector of each gene, shape ``(n_genes, n_features)``, float32.
    """

    vocabulary: Vocabulary
    loadings: NDArray[np.float32]

    def embed(
        self, data: AnnData | str | Path, *, layer: str | None = None, gene_key: str | None = None
    ) -> NDArray[np.float32]:
        """Project cells, and scale each feature to mean 0 and standard deviation 1 over these cells.

        Parameters
        ----------
        data
            Cells, or a file of them.
        layer, gene_key
            Where counts and ids of genes are, as in :func:`scfm.tl.embed`.

        Returns
        -------
        Shape ``(n_cells, n_features)``.

        Raises
        ------
        ValueError
            If no gene is known.
        """
        with open_counts(data, layer=layer) as source:
            parts = [
                block @ self.loadings for block in _normalised(source, _to_genes(source, self.vocabulary, gene_key))
            ]
        cells = np.concatenate(parts)
        found: NDArray[np.float32] = (cells - cells.mean(axis=0)) / (cells.std(axis=0) + 1e-6)
        return found

    def gene_vectors(self, std: float = 0.02) -> pd.DataFrame:
        """Vectors from which those of the genes of a model can start, scaled to a standard deviation.

        Returns
        -------
        A row for each gene, its id as index.
        """
        vectors = self.loadings * (std / self.loadings.std())
        return pd.DataFrame(vectors, index=pd.Index(self.vocabulary.genes, name="gene"))


@typed
def linear_projection(
    files: str | Path | Sequence[str | Path],
    vocabulary: Vocabulary,
    *,
    n_features: int = 128,
    power: float = 0.5,
    layer: str | None = None,
    gene_key: str | None = None,
    n_iter: int = 4,
    seed: int = 0,
) -> LinearProjection:
    """Find the directions in which the cells of a corpus differ most.

    With ``x = log(1 + 10,000 · counts / sum of the counts of known genes)``, a weight ``w`` of each cell and the weighted
    standard deviation ``s`` of each gene, the rows ``w · x / (s + 0.1)`` of all cells are decomposed; the loadings are the
    first right singular vectors, each gene divided by its ``s + 0.1``. They are found by subspace iteration (Halko et al.
    2011, doi:10.1137/090771806), in ``n_iter + 2`` passes over the files; memory is bounded.

    Parameters
    ----------
    files
        Files with counts, patterns, or stores.
    vocabulary
        The genes. Files may lack some, which are 0 there.
    n_features
        Number of directions.
    power
        ``w`` is the number of cells of the file to the power ``power − 1``: 0.5 gives all files the same sum of squares.
    layer, gene_key
        Where counts and ids of genes are in the files, as in :func:`scfm.tl.embed`.
    n_iter
        Iterations.
    seed
        Where the iteration begins.

    Returns
    -------
    The projection, which gives the same cells the same vectors up to rotations within equal singular values.

    Raises
    ------
    ValueError
        If a file has no cells or no gene of the vocabulary, there are fewer genes or cells than features, or a number is
        out of bounds.
    TypeError, KeyError, OSError
        As :func:`scfm.tl.embed`, if a file cannot be read.

    Examples
    --------
    >>> import scfm, tempfile
    >>> from scfm.train.projection import linear_projection
    >>> adata = scfm.datasets.pbmc68k()
    >>> path = f"{tempfile.mkdtemp()}/blood.h5ad"
    >>> adata[:500].write_h5ad(path)
    >>> genes = scfm.model.load_recipe("scfm-mini").vocabulary
    >>> projection = linear_projection(path, genes, n_features=16)
    >>> projection.embed(adata[500:]).shape
    (200, 16)
    """
    check_least("n_features", n_features)
    check_least("n_iter", n_iter, 0)
    check_share("power", power)
    cells = _Cells(paths_of(files), vocabulary, layer, gene_key)
    n_genes = len(vocabulary.genes)
    if n_features > min(n_genes, cells.n_obs):
        msg = f"n_features={n_features} is more than there are genes ({n_genes:,}) or cells ({cells.n_obs:,}); ask for fewer."
        raise ValueError(msg)
    sums, squares, total = np.zeros(n_genes), np.zeros(n_genes), 0.0
    for n, block in cells:
        weight = n ** (power - 1)
        sums += weight * np.asarray(block.sum(axis=0)).ravel()
        squares += weight * np.asarray(block.multiply(block).sum(axis=0)).ravel()
        total += weight * block.shape[0]
    scale = 1 / (np.sqrt(np.maximum(squares / total - (sums / total) ** 2, 0)) + 0.1)

    def applied(directions: NDArray[np.float64]) -> NDArray[np.float64]:
        """The matrix of cells times its transpose, times directions."""
        scaled, result = scale[:, None] * directions, np.zeros_like(directions)
        for n, block in cells:
            result += n ** (2 * power - 2) * (block.T @ (block @ scaled))
        return scale[:, None] * result

    start = np.random.default_rng(seed).normal(size=(n_genes, min(n_features + OVERSAMPLES, n_genes)))
    directions = np.linalg.qr(start)[0]
    for _ in range(n_iter):
        directions = np.linalg.qr(applied(directions))[0]
    within = directions.T @ applied(directions)
    vectors = directions @ np.linalg.eigh((within + within.T) / 2)[1][:, ::-1][:, :n_features]
    return LinearProjection(vocabulary, (scale[:, None] * vectors).astype(np.float32))


class _Cells:
    """Log-normalised counts of files, block by block, with the number of cells of the file; read again each time unless few."""

    def __init__(
        self, paths: Sequence[str | Path], vocabulary: Vocabulary, layer: str | None, gene_key: str | None
    ) -> None:
        def learn(source: CountSource) -> sparse.csr_matrix:
            if not source.n_obs:
                msg = "The file has no cells; leave it out."
                raise ValueError(msg)
            return _to_genes(source, vocabulary, gene_key)

        self._files = JoinedSource(paths, learn, partial(open_counts, layer=layer))
        self._files.close()
        self._kept: list[tuple[int, sparse.csr_matrix]] | None = []
        self._is_complete = False
        self.n_obs = self._files.n_obs

    def __iter__(self) -> Iterator[tuple[int, sparse.csr_matrix]]:
        if self._kept is not None and self._is_complete:
            yield from self._kept
            return
        n_values = 0
        for number, (path, size) in enumerate(zip(self._files.paths, self._files.sizes, strict=True)):
            with of_file(path), self._files.opened(number) as source:
                for block in _normalised(source, self._files.facts[number]):
                    n_values += block.nnz
                    if n_values > HELD:
                        self._kept = None
                    if self._kept is not None:
                        self._kept.append((size, block))
                    yield size, block
        self._is_complete = True


def _to_genes(source: CountSource, vocabulary: Vocabulary, gene_key: str | None) -> sparse.csr_matrix:
    """1 where a column of a source is a gene of the vocabulary, shape ``(n_vars, n_genes)``."""
    tokens = align(source.var, vocabulary, gene_key=gene_key).tokens
    place = np.full(vocabulary.size, -1)
    place[vocabulary.tokens] = np.arange(len(vocabulary.genes))
    known = np.flatnonzero(tokens >= 0)
    shape = source.n_vars, len(vocabulary.genes)
    return sparse.csr_matrix((np.ones(len(known), np.float32), (known, place[tokens[known]])), shape=shape)


def _normalised(source: CountSource, to_genes: sparse.csr_matrix) -> Iterator[sparse.csr_matrix]:
    for block in source.blocks(ROWS):
        shape = block.n_cells, to_genes.shape[0]
        counts = sparse.csr_matrix((block.data.astype(np.float32), block.indices, block.indptr), shape=shape) @ to_genes
        totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
        counts = sparse.csr_matrix(sparse.diags(10_000 / totals) @ counts).astype(np.float32)
        counts.data = np.log1p(counts.data)
        yield counts
