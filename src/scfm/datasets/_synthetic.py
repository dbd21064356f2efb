"""Random counts of any size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scfm._checks import typed
from scfm._paths import atomic, check_new

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy import sparse

__all__ = ["synthetic"]

_BLOCK_ROWS = 10_000
_DEPTH_SIGMA = 0.35
_GENE_SIGMA = 1.5


@typed
def synthetic(
    n_cells: int = 1_000,
    n_genes: int = 5_000,
    *,
    genes_per_cell: int = 1_000,
    genes: Sequence[str] | None = None,
    seed: int = 0,
    path: str | Path | None = None,
) -> AnnData:
    """Draw counts with the depth and sparsity of droplet data.

    Every cell detects a number of genes that is log-normal around ``genes_per_cell``; genes are drawn by a log-normal
    abundance, counts are geometric. Each block of 10,000 cells has its own random streams, so a cell does not depend
    on how many there are.

    Parameters
    ----------
    n_cells, n_genes
        Size.
    genes_per_cell
        Median number of genes a cell detects.
    genes
        Gene ids; by default those of scfm-mini, then invented ones (``ENSG`` and a number from 90,000,000,000 on).
    seed
        Seed.
    path
        Write an ``.h5ad`` file there, block by block, and return it opened with ``backed="r"``.

    Returns
    -------
    X: counts, float32 CSR; ``var_names``: the genes; ``obs["n_counts"]``: totals.

    Raises
    ------
    ValueError
        If a size is out of range or ``genes`` has not ``n_genes`` entries.
    FileExistsError
        If ``path`` exists.
    FileNotFoundError
        If its folder does not exist.

    Examples
    --------
    >>> import scfm
    >>> scfm.datasets.synthetic(50, 200, genes_per_cell=20).shape
    (50, 200)
    """
    import anndata as ad
    import pandas as pd
    from scipy import sparse

    if n_cells < 0 or n_genes < 1 or not 1 <= genes_per_cell <= n_genes:
        msg = f"n_cells={n_cells}, n_genes={n_genes}, genes_per_cell={genes_per_cell}: need 0 or more cells and 1 to n_genes genes a cell."
        raise ValueError(msg)
    names = _gene_ids(n_genes) if genes is None else list(genes)
    if len(names) != n_genes:
        msg = f"genes has {len(names)} entries, n_genes is {n_genes}."
        raise ValueError(msg)
    var = pd.DataFrame(index=pd.Index(names))
    blocks = _blocks(n_cells, n_genes, genes_per_cell, seed)
    if path is not None:
        return _written(Path(path), blocks, n_cells, var)
    x = sparse.vstack(list(blocks) or [sparse.csr_matrix((0, n_genes), dtype=np.float32)], format="csr")
    return ad.AnnData(x, obs=_obs(n_cells, np.asarray(x.sum(axis=1)).ravel()), var=var)


def _gene_ids(n_genes: int) -> list[str]:
    from scfm.model import load_recipe

    known = load_recipe("scfm-mini").vocabulary.genes.tolist()[:n_genes]
    return known + [f"ENSG{90_000_000_000 + i}" for i in range(n_genes - len(known))]


def _obs(n_cells: int, totals: NDArray[np.float32]) -> pd.DataFrame:
    import pandas as pd

    names = pd.Index([f"cell-{i}" for i in range(n_cells)])
    return pd.DataFrame({"n_counts": totals.astype(np.float32)}, index=names)


def _blocks(n_cells: int, n_genes: int, genes_per_cell: int, seed: int) -> Iterator[sparse.csr_matrix]:
    from scipy import sparse

    abundance = np.random.default_rng(seed).lognormal(sigma=_GENE_SIGMA, size=n_genes)
    edges = np.cumsum(abundance / abundance.sum())
    edges[-1] = 1.0  # rounding must not leave a gap at the end
    for start in range(0, n_cells, _BLOCK_ROWS):
        # A stream each for depth, genes and counts: what is drawn for further cells comes behind.
        depth_rng, gene_rng, count_rng = np.random.default_rng([seed, start]).spawn(3)
        rows = min(_BLOCK_ROWS, n_cells - start)
        # Draws of a gene that is there already are lost; about a third of them, at these abundances.
        wanted = genes_per_cell * depth_rng.lognormal(sigma=_DEPTH_SIGMA, size=rows)
        draws = np.clip(_draws_for(wanted, edges), 1, 20 * n_genes).astype(np.int64)
        columns = np.searchsorted(edges, gene_rng.random(draws.sum()), side="right")
        owner = np.repeat(np.arange(rows), draws)
        counts = count_rng.geometric(0.6, size=len(columns)).astype(np.float32)
        block = sparse.csr_matrix((counts, (owner, columns)), shape=(rows, n_genes), dtype=np.float32)
        block.sum_duplicates()
        yield block


def _draws_for(wanted: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many draws give a number of distinct genes: inverts E[distinct] = Σ 1 − (1 − p)ⁿ on a grid."""
    p = np.diff(edges, prepend=0.0)
    grid = np.geomspace(1, 20 * len(p), 64)
    distinct = np.array([(-np.expm1(n * np.log1p(-np.minimum(p, 1 - 1e-12)))).sum() for n in grid])
    return np.interp(wanted, distinct, grid)


def _written(path: Path, blocks: Iterator[sparse.csr_matrix], n_cells: int, var: pd.DataFrame) -> AnnData:
    """Write an h5ad file with one block of X in memory at a time."""
    import anndata as ad
    import h5py
    from scipy import sparse

    check_new(path)
    totals = [np.empty(0, np.float32)]
    empty = ad.AnnData(sparse.csr_matrix((0, len(var)), dtype=np.float32), var=var)
    with atomic(path) as work:
        empty.write_h5ad(work)
        with h5py.File(work, "r+") as file:
            x = ad.io.sparse_dataset(file["X"])
            for block in blocks:
                x.append(block)
                totals.append(np.asarray(block.sum(axis=1)).ravel())
            del file["obs"]
            ad.io.write_elem(file, "obs", _obs(n_cells, np.concatenate(totals)))
    return ad.read_h5ad(path, backed="r")
