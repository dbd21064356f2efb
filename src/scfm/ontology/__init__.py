"""The Cell Ontology: terms, names, distances, and cell types that a reference has not seen."""

from __future__ import annotations

from scfm.ontology.graph import CellOntology
from scfm.ontology.novel import novel_type_scores, prototypes
from scfm.ontology.read import bundled, read_ontology

__all__ = ["CellOntology", "bundled", "novel_type_scores", "prototypes", "read_ontology"]


def __dir__() -> list[str]:
    return sorted(__all__)
