"""Views of cells: the same cell as a shallower experiment, or one with another panel of genes, would have shown it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._checks import check_least, check_share

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm._types import CountBlock

__all__ = ["Views", "random_panels"]


@dataclass(frozen=True)
class Views:
    """Draws a view of each cell of a block.

    First counts are thinned, as if fewer molecules had been sequenced: Binomial(count, depth), with a depth of each cell
    that is drawn log-uniformly. Then cells are cut to a panel of genes: all that were measured, or those of another
    source, and of these all, or a random subset whose size is drawn log-uniformly. Random gene sets of other sizes and
    thinned counts are the two ways in which public data sets of one cell type differ most, and a loss that compares two
    such views (:class:`~scfm.train.objectives.Contrastive`) makes embeddings of them alike.

    Parameters
    ----------
    thinned
        Share of the cells that are thinned.
    least_depth
        Smallest depth; the largest is 1.
    cut
        Share of the cells that are cut to a random subset of the genes.
    least_genes
        Genes of the smallest subset; the largest is all genes that were measured.
    foreign
        Share of the cells that are cut to the genes of a source drawn at random.
    disjoint
        Share of the panels that hold no gene of the other view: a random 30 to 70 % of the genes are of one view, and the
        others of the other one. What two such views have in common is the state of the cell, never a single gene.
    efficiency
        Largest standard deviation of the log-efficiency with which a gene is counted, by which a gene is thinned further
        (never less than by the depth). A panel draws its own between 0 and this, and efficiencies of its genes: cells of
        one panel then differ from those of another as batches do.
    cells_per_panel
        Consecutive cells that share a panel; 1 for a panel for each cell.
    least_expressed
        A cell whose view would have fewer expressed genes stays as it is.

    Raises
    ------
    ValueError
        If a share is not between 0 and 1, ``least_depth`` not above 0 and at most 1, ``efficiency`` negative, or a number below 1; on calling, if
        the source has a count that is negative or not finite, or ``foreign`` has no panels.

    Examples
    --------
    >>> import numpy as np
    >>> from scfm._types import CountBlock
    >>> block = CountBlock(0, np.array([0, 3]), np.array([0, 1, 2]), np.array([5, 1, 9]), np.array([15.0]))
    >>> views = Views(thinned=0, cut=1, least_genes=1, least_expressed=1)
    >>> view = views(block, np.array([2, 3, 4]), np.random.default_rng(0))
    >>> view.indices, view.data, view.totals
    (array([0, 2]), array([5, 9]), array([14.]))
    """

    thinned: float = 0.5
    least_depth: float = 0.3
    cut: float = 0.5
    least_genes: int = 250
    foreign: float = 0.0
    disjoint: float = 0.0
    efficiency: float = 0.0
    cells_per_panel: int = 1
    least_expressed: int = 20

    def __post_init__(self) -> None:
        for name in ("thinned", "cut", "foreign", "disjoint"):
            check_share(name, getattr(self, name))
        check_share("least_depth", self.least_depth, above=True)
        if self.efficiency < 0:
            msg = f"efficiency must not be negative, got {self.efficiency!r}."
            raise ValueError(msg)
        for name in ("least_genes", "cells_per_panel", "least_expressed"):
            check_least(name, getattr(self, name))

    def __call__(
        self,
        block: CountBlock,
        genes: NDArray[np.integer],
        rng: np.random.Generator,
        panels: NDArray[np.bool_] | None = None,
        half: tuple[int, np.random.Generator] | None = None,
    ) -> CountBlock:
        """Draw one view of each cell.

        Parameters
        ----------
        block
            Counts of the cells.
        genes
            Token of each column of the source, below 0 where the model has none, shape ``(n_vars,)``. Columns without a
            token do not occur in the view.
        rng
            Where the view is drawn from, alone.
        panels
            Genes of the sources of the corpus, by token, shape ``(n_sources, n_tokens)``; needed for ``foreign``.
        half
            Number of this view, and where both views draw alike which genes are of the first; needed for ``disjoint``.

        Returns
        -------
        Block of the same cells in the same order, with the totals of the view.
        """
        if self.foreign and panels is None:
            msg = f"foreign={self.foreign} cuts cells to the genes of other sources, which panels= has to name."
            raise ValueError(msg)
        n = block.n_cells
        row, token = np.repeat(np.arange(n), np.diff(block.indptr)), genes[block.indices]
        depths = np.where(rng.random(n) < self.thinned, self.least_depth ** rng.random(n), 1.0)
        panel, n_panels = row // self.cells_per_panel, -(-n // self.cells_per_panel)
        kept = self._panels(genes, n_panels, rng, panels)
        if self.disjoint and half is not None:
            kept &= self._half(kept.shape, *half)
        chance = depths[row]
        if self.efficiency:
            sd = rng.uniform(0, self.efficiency, (n_panels, 1))
            chance = chance * np.exp(np.minimum(sd * rng.normal(size=kept.shape), 0))[panel, token]
        data = _thinned(block.data, chance, rng)
        keep = (token >= 0) & (data > 0) & kept[panel, token]
        poor = (np.bincount(row[keep], minlength=n) < self.least_expressed)[row]
        keep, data = np.where(poor, token >= 0, keep), np.where(poor, block.data, data)
        row, data = row[keep], data[keep]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))])
        totals = np.bincount(row, weights=data, minlength=n).astype(np.float64)
        return replace(block, indptr=indptr, indices=block.indices[keep], data=data, totals=totals)

    def _half(self, shape: tuple[int, ...], view: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Genes that may be of one of two views, by panel and token."""
        is_first = rng.random(shape) < rng.uniform(0.3, 0.7, (shape[0], 1))
        return (rng.random((shape[0], 1)) >= self.disjoint) | (is_first if view == 0 else ~is_first)

    def _panels(
        self, genes: NDArray[np.integer], n: int, rng: np.random.Generator, panels: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_]:
        """Genes that each of ``n`` groups of cells keeps, by token."""
        measured = np.zeros(int(genes.max(initial=0)) + 1, bool)
        measured[genes[genes >= 0]] = True
        allowed = np.tile(measured, (n, 1))
        foreign = np.flatnonzero(rng.random(n) < self.foreign)
        if panels is not None:
            known = panels[rng.integers(len(panels), size=len(foreign)), : len(measured)]
            allowed[foreign, : known.shape[1]] &= known
            allowed[foreign, known.shape[1] :] = False
        cut = np.flatnonzero(rng.random(n) < self.cut)
        allowed[cut] = random_panels(allowed[cut], self.least_genes, rng)
        return allowed


def random_panels(candidates: NDArray[np.bool_], least: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a random subset of the genes of each row.

    Parameters
    ----------
    candidates
        Genes of which each panel may hold some, shape ``(n_panels, n_tokens)``.
    least
        Genes of the smallest panel. The size is ``least · (all / least)ᵘ``, u uniform in 0 to 1; a row with no more
        candidates is kept whole.
    rng
        Where panels are drawn from.

    Returns
    -------
    Mask of the shape of ``candidates``.

    Examples
    --------
    >>> import numpy as np
    >>> random_panels(np.ones((2, 6), bool), 3, np.random.default_rng(0)).sum(axis=1)
    array([5, 4])
    """
    kept = candidates.copy()
    sizes = least ** (1 - (u := rng.random(len(candidates)))) * candidates.sum(axis=1) ** u
    for row, size in enumerate(np.rint(sizes).astype(int).tolist()):
        genes = np.flatnonzero(candidates[row])
        if size < len(genes):
            kept[row, rng.choice(genes, len(genes) - size, replace=False, shuffle=False)] = False
    return kept


def _thinned(counts: NDArray[Any], depths: NDArray[np.float64], rng: np.random.Generator) -> NDArray[Any]:
    """Binomial(count, depth), fractions rounded; counts of depth 1 stay."""
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        msg = "Only counts can be thinned; the data hold values that are negative or not finite. Name the layer with counts."
        raise ValueError(msg)
    changed = np.flatnonzero(depths < 1)
    counts = counts.copy()
    counts[changed] = rng.binomial(np.rint(counts[changed]).astype(np.int64), depths[changed])
    return counts
