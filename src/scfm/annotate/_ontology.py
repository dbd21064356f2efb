"""Predict types without cells in the reference, from their position in the ontology."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scfm.ontology import novel_type_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scfm.annotate._reference import Reference
    from scfm.ontology import CellOntology

__all__ = ["OntologyScores"]

MIN_TYPES = 3
"""A rank correlation over two types is 1 or −1 for every cell."""


class OntologyScores:
    """Scores of types by scCello's method for novel types :cite:p:`Yuan2024`.

    The score is the Spearman correlation (:func:`scfm.ontology.novel_type_scores`) between the similarity of a cell to
    the means of the known types and the PageRank of a candidate to these types.

    Parameters
    ----------
    ontology
        Graph of the types.
    reference
        Cells whose labels are ids of terms.

    Raises
    ------
    ValueError
        If the reference has fewer than three types.
    """

    def __init__(self, ontology: CellOntology, reference: Reference) -> None:
        if len(reference.labels) < MIN_TYPES:
            msg = (
                f"method='ontology' ranks the types of the reference, which has {len(reference.labels)}: "
                f"{', '.join(reference.labels)}. At least {MIN_TYPES} are needed."
            )
            raise ValueError(msg)
        self._ontology, self._reference = ontology, reference

    def scores(self, query: NDArray[np.floating], candidates: Sequence[str]) -> NDArray[np.float64]:
        """Spearman correlation of each cell with each candidate.

        Parameters
        ----------
        query
            Embeddings, shape ``(n_cells, d)``.
        candidates
            Ids of terms.

        Returns
        -------
        float64 in [-1, 1], shape ``(n_cells, n_candidates)``; NaN for a cell that is equally similar to all types.

        Raises
        ------
        ValueError
            If a candidate is equally distant from all known types.
        """
        # small graphs need more than the default of 100 iterations
        pagerank = self._ontology.pagerank(candidates, to=self._reference.labels, max_iter=1000)
        names = [f"{self._ontology.name_of(id)} ({id})" for id in candidates]
        return novel_type_scores(query, self._reference.means(), pagerank, targets=names)

    def left_out(self, seed: int) -> NDArray[np.float64]:
        """Best score among the known types for held-out cells, for :func:`threshold`.

        Parameters
        ----------
        seed
            As for :meth:`Reference.folds`.
        """
        found = []
        for known, left in self._reference.folds(seed):
            labels = [label for label, there in zip(known.labels, known.present(), strict=True) if there]
            codes = np.cumsum(known.present())[known.codes] - 1
            part = OntologyScores(self._ontology, replace(known, codes=codes, labels=labels))
            found.append(part.scores(left.values, labels).max(axis=1))
        return np.concatenate(found)
