"""Cell types from embeddings, on arrays."""

from __future__ import annotations

from scfm.annotate._classify import Classifier, Metric, label_probabilities
from scfm.annotate._ontology import OntologyScores
from scfm.annotate._predict import Prediction, left_out_novelty, predict, predict_types, threshold
from scfm.annotate._probe import LinearProbe, train_probe
from scfm.annotate._reference import Reference
from scfm.annotate._space import LabelSpace

__all__ = [
    "Classifier",
    "LabelSpace",
    "LinearProbe",
    "Metric",
    "OntologyScores",
    "Prediction",
    "Reference",
    "label_probabilities",
    "left_out_novelty",
    "predict",
    "predict_types",
    "threshold",
    "train_probe",
]
