"""Genes that a user names, and that lead to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scfm._text import some
from scfm._warn import warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scfm.model.session import CountSession

__all__ = ["NamedGenes"]


class NamedGenes:
    """Genes that a user names, or all of the data.

    Parameters
    ----------
    session
        Model and cells.
    genes
        The names; ``None`` for all genes.

    Raises
    ------
    KeyError
        If a gene is not in the data.
    ValueError
        If the model knows none of them.

    Warns
    -----
    UserWarning
        If the model does not know some that were named.
    """

    def __init__(self, session: CountSession, genes: str | Sequence[str] | None) -> None:
        self._model = session.model.card.id
        of_columns = session.genes.tokens[session.columns_of(genes)]
        self._named = None if genes is None else [genes] if isinstance(genes, str) else list(genes)
        self._of_columns = of_columns
        self.tokens: NDArray[np.int32] = np.unique(of_columns[of_columns >= 0])
        """Their tokens, sorted."""
        if not len(self.tokens):
            msg = f"{self._model} knows none of the genes=, so there is nothing to compute; name others."
            raise ValueError(msg)
        unknown = self._names(of_columns < 0)
        if unknown:
            warn(f"{self._model} does not know {some(unknown)}: there are no results for them.")

    def check_expressed(self, expressed: NDArray[np.int32], n_cells: int) -> None:
        """Tell genes that were named, but that are in none of the sequences that the model has read of the cells.

        Parameters
        ----------
        expressed
            Tokens of the genes that are.
        n_cells
            Number of the cells.

        Raises
        ------
        ValueError
            If none of them is.

        Warns
        -----
        UserWarning
            If some are not.
        """
        absent = self._names((self._of_columns >= 0) & ~np.isin(self._of_columns, expressed))
        if not absent:
            return
        if not len(expressed):
            msg = f"None of the {n_cells} cells expresses {some(absent)} so that the model reads it; name other genes."
            raise ValueError(msg)
        warn(
            f"None of the {n_cells} cells expresses {some(absent)} so that the model reads it: there are no results for them."
        )

    def _names(self, which: NDArray[np.bool_]) -> list[str]:
        return [] if self._named is None else [self._named[at] for at in np.flatnonzero(which)]
