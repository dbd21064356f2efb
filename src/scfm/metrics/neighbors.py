"""Neighbour graphs of cells, and their connectivity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._checks import typed
from scfm.metrics.input import codes_of, import_scib, points_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scfm._types import Compat

__all__ = ["check_neighbors", "graph_connectivity", "neighbors_of"]


@typed
def graph_connectivity(
    embedding: ArrayLike, labels: ArrayLike, *, n_neighbors: int = 15, compat: Compat | None = None
) -> float:
    r"""Graph connectivity: largest connected fraction of the cells of a label, mean over labels.

    .. math:: \mathrm{GC} = \frac{1}{|L|} \sum_{l \in L} \frac{|\mathrm{LCC}(G_l)|}{|G_l|}

    with the subgraph :math:`G_l` of the cells of label :math:`l` and its largest connected component
    (Luecken et al. 2022, doi:10.1038/s41592-021-01336-8).

    Parameters
    ----------
    embedding
        Cells, ``(n_cells, n_features)``.
    labels
        Cell type of each cell. (scCello passes batches here, see :func:`score_embedding`.)
    n_neighbors
        Neighbours of each cell, itself included.
    compat
        By default the graph and its components are those of scib-metrics: edges point from a cell to its nearest
        neighbours, and components are strongly connected. ``"upstream"``: edges are undirected, as in scCello and the
        original scib package; values are equal or higher.

    Returns
    -------
    A value in (0, 1], high is good.

    Raises
    ------
    ValueError
        If there are not more cells than ``n_neighbors``, if labels or values are missing, or all labels are one.
    ImportError
        If scib-metrics is not installed.

    Examples
    --------
    >>> import numpy as np, scfm
    >>> line = np.arange(40.0)[:, None]
    >>> scfm.metrics.graph_connectivity(line, ["a"] * 20 + ["b"] * 20, n_neighbors=5)
    1.0
    """
    points = points_of(embedding)
    codes = codes_of(labels, len(points))
    neighbors = neighbors_of(points, n_neighbors)
    if compat is None:
        return float(import_scib().graph_connectivity(neighbors, codes))
    from scipy.sparse.csgraph import connected_components

    graph, shares = neighbors.knn_graph_connectivities.tocsr(), []
    for code in range(codes.max() + 1):
        cells = np.flatnonzero(codes == code)
        _, component = connected_components(graph[cells][:, cells], directed=False)
        shares.append(np.bincount(component).max() / len(cells))
    return float(np.mean(shares))


def check_neighbors(n_neighbors: int, n_cells: int, where: str = "") -> None:
    """Raise a ValueError if there are not more cells than neighbours, or less than two neighbours."""
    if not 2 <= n_neighbors < n_cells:
        msg = f"{where}n_neighbors={n_neighbors} of {n_cells:,} cells: need at least 2, and more cells than neighbours."
        raise ValueError(msg)


def neighbors_of(points: NDArray[np.float32], n_neighbors: int) -> Any:
    """Exact nearest neighbours of each cell by Euclidean distance, as scib-metrics keeps them.

    Each cell is its own first neighbour, as in scanpy.

    Raises
    ------
    ValueError
        If there are not more cells than neighbours, or less than two neighbours.
    """
    check_neighbors(n_neighbors, len(points))
    scib = import_scib()
    from sklearn.neighbors import NearestNeighbors

    distances, indices = NearestNeighbors(n_neighbors=n_neighbors).fit(points).kneighbors(points)
    return scib.nearest_neighbors.NeighborsResults(indices=indices, distances=distances)
