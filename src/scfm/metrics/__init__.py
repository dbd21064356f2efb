"""Benchmark embeddings, classifiers and gene scores: clustering, batch mixing, calibration, marker genes."""

from __future__ import annotations

from scfm.metrics.calibration import calibrated, calibration_error, fit_temperature
from scfm.metrics.classification import ClassificationReport, classification_report
from scfm.metrics.clustering import nmi_ari
from scfm.metrics.curves import ClassificationCurves, pr_curves, roc_curves
from scfm.metrics.embedding import score_embedding
from scfm.metrics.knn import knn_accuracy
from scfm.metrics.marker_genes import marker_auroc
from scfm.metrics.markers import read_markers
from scfm.metrics.neighbors import graph_connectivity
from scfm.metrics.silhouette import silhouette_batch, silhouette_label

__all__ = [
    "ClassificationCurves",
    "ClassificationReport",
    "calibrated",
    "calibration_error",
    "classification_report",
    "fit_temperature",
    "graph_connectivity",
    "knn_accuracy",
    "marker_auroc",
    "nmi_ari",
    "pr_curves",
    "read_markers",
    "roc_curves",
    "score_embedding",
    "silhouette_batch",
    "silhouette_label",
]


def __dir__() -> list[str]:
    return sorted(__all__)
