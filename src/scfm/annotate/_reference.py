"""Labelled reference cells, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from scfm.ontology import prototypes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["Reference"]

N_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Reference:
    """Labelled reference cells."""

    values: NDArray[np.floating]
    """Embeddings, all finite, shape ``(n_cells, d)``."""
    codes: NDArray[np.int64]
    """Position in ``labels`` of the label of each cell, shape ``(n_cells,)``."""
    labels: list[str]
    """All labels."""
    batches: NDArray[np.int64] | None = None
    """Batch of each cell, shape ``(n_cells,)``; ``None``: batches are ignored."""

    def means(self) -> NDArray[np.float64]:
        """Mean embedding of each label, shape ``(n_labels, d)``; zero for a label without a cell."""
        return prototypes(self.values, self.codes, range(len(self.labels)))

    def present(self) -> NDArray[np.bool_]:
        """Which labels have a cell, shape ``(n_labels,)``."""
        return np.bincount(self.codes, minlength=len(self.labels)) > 0

    def take(self, cells: NDArray[np.int64]) -> Self:
        """Some of the cells, with the same labels."""
        batches = None if self.batches is None else self.batches[cells]
        return replace(self, values=self.values[cells], codes=self.codes[cells], batches=batches)

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same cells with renamed labels; labels with the same new name are merged."""
        labels = sorted({names[label] for label in self.labels})
        place = np.array([labels.index(names[label]) for label in self.labels])
        return replace(self, codes=place[self.codes], labels=labels)

    def folds(self, seed: int) -> Iterator[tuple[Self, Self]]:
        """Yield training cells and held-out cells, five times.

        Batches, if given, are held out as a whole. Held-out cells whose label is missing among the training cells are
        dropped, because they would be novel.

        Parameters
        ----------
        seed
            Seed of the folds over cells.

        Raises
        ------
        ValueError
            If there is only one batch, or one cell.
        """
        from sklearn.model_selection import GroupKFold, KFold

        n_groups = len(self.codes) if self.batches is None else len(np.unique(self.batches))
        if n_groups < 2:
            what = "cell" if self.batches is None else "batch"
            msg = f"A reference of one {what} cannot be split. Give a larger reference, or reject=None."
            raise ValueError(msg)
        n_folds = min(N_FOLDS, n_groups)
        splitter = KFold(n_folds, shuffle=True, random_state=seed) if self.batches is None else GroupKFold(n_folds)
        for rest, left in splitter.split(self.values, groups=self.batches):
            known = self.take(rest)
            yield known, self.take(left[known.present()[self.codes[left]]])
