"""From the gene ids of the data to the tokens of a model."""

from __future__ import annotations

from scfm.genes.align import GeneMap, MatchReport, align
from scfm.genes.first import first_index, first_of_each
from scfm.genes.names import columns_of, find_columns
from scfm.genes.upstream import match_column, match_exact, match_upstream
from scfm.genes.vocabulary import Vocabulary

__all__ = [
    "GeneMap",
    "MatchReport",
    "Vocabulary",
    "align",
    "columns_of",
    "find_columns",
    "first_index",
    "first_of_each",
    "match_column",
    "match_exact",
    "match_upstream",
]
