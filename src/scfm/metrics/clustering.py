"""Agreement of clusters of an embedding with labels."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scfm._checks import typed
from scfm.metrics.input import codes_of, import_scib, points_of
from scfm.metrics.neighbors import neighbors_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from scfm._types import Compat

__all__ = ["check_clustering", "nmi_ari"]

UPSTREAM_RESOLUTIONS = [x / 10 for x in range(1, 21)]


@typed
def nmi_ari(
    embedding: ArrayLike,
    labels: ArrayLike,
    *,
    clustering: Literal["leiden", "kmeans"] = "leiden",
    n_neighbors: int = 15,
    compat: Compat | None = None,
    seed: int = 42,
) -> tuple[float, float]:
    """Normalised mutual information and adjusted Rand index of labels and clusters.

    The mutual information is divided by the arithmetic mean of the two entropies. Of several clusterings, the one with
    the highest NMI is used for both.

    Parameters
    ----------
    embedding
        Cells, ``(n_cells, n_features)``.
    labels
        Cell type of each cell.
    clustering
        ``"leiden"``: Leiden communities of the neighbour graph, the best of the resolutions 0.2, 0.4, ..., 2.
        ``"kmeans"``: as many clusters as there are labels. Both as in scib-metrics.
    n_neighbors
        Neighbours of each cell in the graph, itself included.
    compat
        ``"upstream"``: as scCello, Louvain communities of the unweighted graph, the best of the resolutions 0.1, 0.2,
        ..., 2.
    seed
        Seed of the community detection.

    Returns
    -------
    NMI, in [0, 1], and ARI, at most 1; 0 is chance.

    Raises
    ------
    ValueError
        If ``clustering`` is not known, or as :func:`graph_connectivity`.
    ImportError
        If scib-metrics is not installed.

    Examples
    --------
    >>> import numpy as np, scfm
    >>> points = np.random.default_rng(0).normal(size=(60, 4))
    >>> points[30:] += 10
    >>> scfm.metrics.nmi_ari(points, ["a"] * 30 + ["b"] * 30)
    (1.0, 1.0)
    """
    check_clustering(clustering, compat)
    points = points_of(embedding)
    codes = codes_of(labels, len(points))
    scib = import_scib()
    if clustering == "kmeans":
        found = scib.nmi_ari_cluster_labels_kmeans(points, codes)
        return float(found["nmi"]), float(found["ari"])
    neighbors = neighbors_of(points, n_neighbors)
    with _igraph_seeded(seed):
        if compat is not None:
            return _best_louvain(neighbors.knn_graph_connectivities, codes)
        found = scib.nmi_ari_cluster_labels_leiden(neighbors, codes, seed=seed)
    return float(found["nmi"]), float(found["ari"])


def check_clustering(clustering: str, compat: Compat | None) -> None:
    """Raise a ValueError for a clustering that upstream does not have."""
    if clustering == "kmeans" and compat is not None:
        msg = "clustering='kmeans' is not part of compat='upstream'; leave one of them out."
        raise ValueError(msg)


def _best_louvain(connectivities: Any, codes: NDArray[np.int64]) -> tuple[float, float]:
    import igraph
    from scipy import sparse
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    edges = np.stack(sparse.triu(connectivities, k=1).nonzero(), axis=1)
    graph = igraph.Graph(n=len(codes), edges=edges)
    clusters = [graph.community_multilevel(resolution=resolution).membership for resolution in UPSTREAM_RESOLUTIONS]
    scores = [normalized_mutual_info_score(codes, found) for found in clusters]
    best = int(np.argmax(scores))
    return float(scores[best]), float(adjusted_rand_score(codes, clusters[best]))


@contextmanager
def _igraph_seeded(seed: int) -> Iterator[None]:
    """Seed igraph, which visits cells in random order, and restore its generator."""
    import igraph

    igraph.set_random_number_generator(random.Random(seed))
    try:
        yield
    finally:
        igraph.set_random_number_generator(random)
