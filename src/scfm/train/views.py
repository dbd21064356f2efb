"""Views of cells: a cell as a shallower experiment, or one with other genes, would have measured it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scfm._checks import check_least

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Views", "random_panels"]


@dataclass(frozen=True)
class Views:
    """Draws a view of a cell, with fewer molecules, fewer genes, or both.

    Data sets of one cell type differ most in their depth and in the genes that they measure. A loss that compares two
    views of a cell (:class:`~scfm.train.objectives.Contrastive`) makes the embedding indifferent to both.

    Counts are thinned as if fewer molecules had been sequenced: Binomial(count, depth), with a depth that is drawn
    log-uniformly. Genes are those of a panel: one of ``panels``, or a random subset of all genes, whose size is drawn
    log-uniformly, or a random subset of such a panel.

    Parameters
    ----------
    n_genes
        Genes of the vocabulary.
    panels
        Genes by position in the vocabulary that other experiments measure, such as the sources of the corpus or
        :func:`random_panels` that several cells share, shape ``(n_panels, n_genes)``; ``None`` for none.
    thinned
        Share of the cells that are thinned.
    least_depth
        Smallest depth; the largest is 1.
    cut
        Share of the cells that see a random subset of the genes.
    least_genes
        Genes of the smallest subset; the largest is all.
    shared
        Share of the cells that see the genes of one of ``panels``, drawn at random.
    least_expressed
        A cell whose view would have fewer expressed genes stays as it is.

    Raises
    ------
    ValueError
        If a share is not between 0 and 1, ``least_depth`` not above 0 and at most 1, a number below 1, or panels have
        another number of genes.

    Examples
    --------
    >>> import numpy as np
    >>> views = Views(n_genes=8, thinned=1, least_depth=0.5, cut=1, least_genes=4, least_expressed=1)
    >>> genes, counts = np.array([1, 3, 4, 6]), np.array([50, 1, 20, 9])
    >>> views(genes, counts, np.random.default_rng(2))
    (array([4]), array([16]))
    """

    n_genes: int
    panels: NDArray[np.bool_] | None = None
    thinned: float = 0.5
    least_depth: float = 0.3
    cut: float = 0.5
    least_genes: int = 250
    shared: float = 0.0
    least_expressed: int = 20

    def __post_init__(self) -> None:
        for name in ("thinned", "cut", "shared"):
            if not 0 <= getattr(self, name) <= 1:
                msg = f"{name}={getattr(self, name)!r} is a share of the cells; it must be between 0 and 1."
                raise ValueError(msg)
        if not 0 < self.least_depth <= 1:
            msg = f"least_depth={self.least_depth!r} is the smallest share of the molecules; it must be above 0 and at most 1."
            raise ValueError(msg)
        for name in ("n_genes", "least_genes", "least_expressed"):
            check_least(name, getattr(self, name))
        if self.panels is not None and self.panels.shape[1:] != (self.n_genes,):
            msg = f"panels have shape {self.panels.shape}; need (n_panels, {self.n_genes}), a column for each gene of the vocabulary."
            raise ValueError(msg)

    def __call__(
        self, genes: NDArray[np.int32], counts: NDArray[np.generic], rng: np.random.Generator
    ) -> tuple[NDArray[np.int32], NDArray[np.generic]]:
        """Draw a view of a cell.

        Parameters
        ----------
        genes
            Position in the vocabulary of each gene with a count, shape ``(n,)``, each once, in any order.
        counts
            Their counts, of any dtype, shape ``(n,)``; of fractions, those that are thinned are rounded.
        rng
            Where the view is drawn from, alone.

        Returns
        -------
        Genes and counts of the view, in the same order; the arguments are not changed.
        """
        keep, seen = np.ones(len(genes), bool), counts
        if rng.random() < self.thinned:
            depth = self.least_depth ** rng.random()
            seen = rng.binomial(np.rint(counts).astype(np.int64), depth).astype(counts.dtype)
            keep = seen > 0
        size = self.n_genes
        if rng.random() < self.shared and self.panels is not None and len(self.panels):
            panel = self.panels[rng.integers(len(self.panels))]
            keep &= panel[genes]
            size = int(np.count_nonzero(panel))
        if rng.random() < self.cut and size > self.least_genes:
            inside = np.flatnonzero(keep)
            # how many genes of the cell a random panel holds, and then which: no panel needs to be drawn
            n_kept = rng.hypergeometric(len(inside), size - len(inside), _log_uniform(self.least_genes, size, rng))
            keep[rng.choice(inside, len(inside) - n_kept, replace=False, shuffle=False)] = False
        if np.count_nonzero(keep) < self.least_expressed:
            return genes, counts
        return genes[keep], seen[keep]


def random_panels(n: int, n_genes: int, least: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw random subsets of the genes, for cells that are to share them.

    Parameters
    ----------
    n, n_genes
        Number of panels, and genes of the vocabulary.
    least
        Genes of the smallest panel; sizes are log-uniform from there to ``n_genes``.
    rng
        Where panels are drawn from.

    Returns
    -------
    Mask of shape ``(n, n_genes)``.

    Examples
    --------
    >>> import numpy as np
    >>> random_panels(3, 100, 10, np.random.default_rng(0)).sum(axis=1)
    array([43, 44, 17])
    """
    panels = np.zeros((n, n_genes), bool)
    for panel in panels:
        panel[rng.choice(n_genes, _log_uniform(min(least, n_genes), n_genes, rng), replace=False, shuffle=False)] = True
    return panels


def _log_uniform(least: int, largest: int, rng: np.random.Generator) -> int:
    return round(least * (largest / least) ** rng.random())
