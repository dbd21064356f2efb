"""Models that learn labels or numbers of cells, classes of genes: foundation models with a head, on scvi-tools."""

from __future__ import annotations

from scfm.train.supervised._cell_classifier import CellClassifier
from scfm.train.supervised._cell_model import CellModel
from scfm.train.supervised._cell_regressor import CellRegressor
from scfm.train.supervised._embedding_classifier import EmbeddingClassifier
from scfm.train.supervised._gene_classifier import GeneClassifier
from scfm.train.supervised._multi_task_classifier import MultiTaskClassifier
from scfm.train.supervised.crossval import CrossValidation
from scfm.train.supervised.loading import load, repeat
from scfm.train.supervised.search import Search, search

__all__ = [
    "CellClassifier",
    "CellModel",
    "CellRegressor",
    "CrossValidation",
    "EmbeddingClassifier",
    "GeneClassifier",
    "MultiTaskClassifier",
    "Search",
    "load",
    "repeat",
    "search",
]
