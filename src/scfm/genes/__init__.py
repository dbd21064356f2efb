"""From the gene ids of the data to the tokens of a model."""

from __future__ import annotations

from scfm.genes.align import align
from scfm.genes.features import ids_of
from scfm.genes.first import first_index, first_of_each
from scfm.genes.names import columns_of, find_columns
from scfm.genes.panel import Overlap, overlap, panels_in
from scfm.genes.report import GeneMap, MatchReport
from scfm.genes.species import OtherSpeciesError, is_species
from scfm.genes.union import union_of
from scfm.genes.upstream import match_column, match_exact, match_upstream
from scfm.genes.vocabulary import Vocabulary

__all__ = [
    "GeneMap",
    "MatchReport",
    "OtherSpeciesError",
    "Overlap",
    "Vocabulary",
    "align",
    "columns_of",
    "find_columns",
    "first_index",
    "first_of_each",
    "ids_of",
    "is_species",
    "match_column",
    "match_exact",
    "match_upstream",
    "overlap",
    "panels_in",
    "union_of",
]
