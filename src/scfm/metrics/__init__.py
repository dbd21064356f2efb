"""Benchmark embeddings and gene scores: clustering, batch mixing, marker genes."""

from __future__ import annotations

from scfm.metrics.clustering import nmi_ari
from scfm.metrics.embedding import score_embedding
from scfm.metrics.knn import knn_accuracy
from scfm.metrics.marker_genes import marker_auroc
from scfm.metrics.markers import read_markers
from scfm.metrics.neighbors import graph_connectivity
from scfm.metrics.silhouette import silhouette_batch, silhouette_label

__all__ = [
    "graph_connectivity",
    "knn_accuracy",
    "marker_auroc",
    "nmi_ari",
    "read_markers",
    "score_embedding",
    "silhouette_batch",
    "silhouette_label",
]


def __dir__() -> list[str]:
    return sorted(__all__)
