"""All metrics of an embedding in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from scfm._checks import check_least, entry_of, typed
from scfm.metrics.clustering import check_clustering, nmi_ari
from scfm.metrics.input import codes_of, points_of
from scfm.metrics.neighbors import check_neighbors, graph_connectivity
from scfm.metrics.silhouette import silhouette_batch, silhouette_label

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import NDArray

    from scfm._types import Compat

__all__ = ["score_embedding"]

UPSTREAM_SUBSETS = 10


@typed
def score_embedding(
    adata: AnnData,
    use_rep: str,
    *,
    labels_key: str,
    batch_key: str | None = None,
    clustering: Literal["leiden", "kmeans"] = "leiden",
    n_neighbors: int = 15,
    n_subsets: int | None = None,
    compat: Compat | None = None,
    seed: int = 42,
) -> pd.Series:
    """Score how well an embedding keeps cell types apart and mixes batches.

    By default with the definitions of scIB (Luecken et al. 2022, doi:10.1038/s41592-021-01336-8), by scib-metrics.
    Higher is better for all scores. ``adata`` is not changed.

    Parameters
    ----------
    adata
        Cells.
    use_rep
        Key of the embedding in ``obsm``.
    labels_key
        Column of ``obs`` with the cell types.
    batch_key
        Column of ``obs`` with the batches. Without it, the scores of batches are left out.
    clustering
        Clusters behind NMI and ARI, see :func:`nmi_ari`.
    n_neighbors
        Neighbours of each cell in the graph, itself included.
    n_subsets
        Mean over that many random subsets of ``n_obs // n_subsets`` cells each, which may overlap; 1 scores all cells
        at once. By default 1, or 10 with ``compat="upstream"``. Time and memory of most scores grow with the square
        of the cells.
    compat
        ``"upstream"``: as in scCello's clustering and batch integration benchmarks. NMI and ARI come from Louvain
        clusters, and ``asw_batch`` and ``graph_connectivity`` ignore the cell types: the first is computed over all
        cells of a batch, the second measures the connectivity of *batches*.
    seed
        Seed of subsets and clustering.

    Returns
    -------
    Named ``use_rep``, with the entries

    ``nmi``, ``ari``
        Agreement of clusters and cell types (:func:`nmi_ari`).
    ``asw``
        Silhouette width of cell types (:func:`silhouette_label`).
    ``avg_bio``
        Mean of these three.
    ``asw_batch``
        Silhouette width of batches (:func:`silhouette_batch`).
    ``graph_connectivity``
        Connectivity of cell types (upstream: batches) in the neighbour graph (:func:`graph_connectivity`).
    ``avg_batch``
        Mean of these two. The last three with ``batch_key`` only.

    Raises
    ------
    KeyError
        If ``use_rep`` is not in ``obsm``, or a key not in ``obs``.
    ValueError
        If values of the embedding, labels or batches are missing, if all are the same (in a subset), or there are not
        more cells than ``n_neighbors``.
    ImportError
        If scib-metrics is not installed.

    Examples
    --------
    >>> import numpy as np, scfm
    >>> adata = scfm.datasets.synthetic(90, 200, genes_per_cell=20)
    >>> adata.obs["cell_type"] = np.repeat(["a", "b", "c"], 30)
    >>> adata.obsm["X_sum"] = np.repeat(np.eye(3), 30, axis=0) * 9 + np.random.default_rng(0).normal(size=(90, 3))
    >>> scores = scfm.metrics.score_embedding(adata, "X_sum", labels_key="cell_type")
    >>> scores.index.tolist(), bool(scores["nmi"] > 0.9)
    (['nmi', 'ari', 'asw', 'avg_bio'], True)
    """
    check_clustering(clustering, compat)
    n_subsets = (1 if compat is None else UPSTREAM_SUBSETS) if n_subsets is None else n_subsets
    check_least("n_subsets", n_subsets)
    points = points_of(entry_of(adata.obsm, use_rep, "obsm"), f"obsm[{use_rep!r}]")
    labels = _column(adata, labels_key)
    batches = None if batch_key is None else _column(adata, batch_key)
    check_neighbors(n_neighbors, len(points) // n_subsets, f"n_subsets={n_subsets}: " if n_subsets > 1 else "")

    def bio(cells: NDArray[np.int64]) -> dict[str, float]:
        nmi, ari = nmi_ari(
            points[cells], labels[cells], clustering=clustering, n_neighbors=n_neighbors, compat=compat, seed=seed
        )
        return {"nmi": nmi, "ari": ari, "asw": silhouette_label(points[cells], labels[cells])}

    def batch(cells: NDArray[np.int64]) -> dict[str, float]:
        assert batches is not None
        asw = silhouette_batch(points[cells], batches=batches[cells], labels=labels[cells], compat=compat)
        groups = labels if compat is None else batches
        connected = graph_connectivity(points[cells], groups[cells], n_neighbors=n_neighbors, compat=compat)
        return {"asw_batch": asw, "graph_connectivity": connected}

    # upstream's generator, which draws the subsets for batches first
    rng = np.random.RandomState(seed)
    batch_cells, bio_cells = (_subsets(rng, len(points), n_subsets) for _ in range(2))
    scores = _averaged(bio, bio_cells, "avg_bio")
    if batches is not None:
        scores |= _averaged(batch, batch_cells, "avg_batch")
    return pd.Series(scores, name=use_rep)


def _column(adata: AnnData, key: str) -> NDArray[np.str_]:
    """Complete labels, as strings."""
    values = entry_of(adata.obs, key, "obs")
    codes_of(values, adata.n_obs, f"obs[{key!r}]")
    return np.asarray(values).astype(str)


def _subsets(rng: np.random.RandomState, n_cells: int, n_subsets: int) -> list[NDArray[np.int64]]:
    if n_subsets == 1:
        return [np.arange(n_cells)]
    return [rng.permutation(n_cells)[: n_cells // n_subsets] for _ in range(n_subsets)]


def _averaged(
    scores_of: Callable[[NDArray[np.int64]], dict[str, float]], subsets: list[NDArray[np.int64]], average: str
) -> dict[str, float]:
    """Scores, mean over subsets, and the average of these scores."""
    rows = []
    for i, cells in enumerate(subsets):
        try:
            rows.append(scores_of(cells))
        except ValueError as error:
            if len(subsets) == 1:
                raise
            msg = f"In subset {i + 1} of {len(subsets)}: {error} n_subsets=1 scores all cells at once."
            raise ValueError(msg) from error
    scores = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return scores | {average: float(np.mean(list(scores.values())))}
