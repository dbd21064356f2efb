"""Mean state of each gene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.run import GeneMeansSink
from scfm.tasks.embed import Embed

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from scfm.tasks.task import SupportsForward

__all__ = ["GeneMeans"]


class GeneMeans(Embed):
    """Mean of the state of each gene over all cells, or over those of each group.

    Parameters
    ----------
    recipe, options
        The model, and the options of the run, with ``pooling="gene"``.
    column_tokens
        Token of each column of the source, −1 for none.
    n_features
        Features of a state.
    groups
        Group of each cell; all cells are one by default.
    """

    def __init__(
        self,
        recipe: SupportsForward,
        options: Any,
        column_tokens: NDArray[np.int32],
        n_features: int,
        groups: pd.Categorical[Any] | None = None,
    ) -> None:
        if groups is None:
            self._means = GeneMeansSink(column_tokens, n_features)
        else:
            codes = np.asarray(groups.codes, np.int64)
            self._means = GeneMeansSink(column_tokens, n_features, codes, len(groups.categories))
        self._grouped = groups is not None
        super().__init__(recipe, options, self._means)

    def values(self) -> NDArray[np.float32]:
        """Means by column, ``(n_columns, n_features)`` or ``(n_columns, n_groups, n_features)``; NaN if never seen."""
        values = self._means.values()
        return values if self._grouped else values[:, 0]

    def counts(self) -> NDArray[np.int64]:
        """Number of cells that express the gene of each column, ``(n_columns,)`` or ``(n_columns, n_groups)``."""
        counts = self._means.counts()
        return counts if self._grouped else counts[:, 0]
