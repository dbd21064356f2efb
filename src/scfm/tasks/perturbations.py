"""Changes of the genes of a cell: some go, come first, or move among the ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["Kind", "Perturbations", "edit_ranks"]

Kind = Literal["delete", "overexpress", "inhibit", "activate"]
"""Delete genes, put them first, or move them down or up by a quarter of the ranks."""


@dataclass(frozen=True)
class Perturbations:
    """Which genes are changed, and how.

    Parameters
    ----------
    kind
        What happens to them.
    groups
        Tokens that are changed together, one group after the other; ``None``: each gene that a cell expresses by itself.
    anchor
        Token that is changed together with each of the genes; where a cell does not express it, nothing is changed.
    """

    kind: Kind
    groups: tuple[tuple[int, ...], ...] | None = None
    anchor: int | None = None

    def of(self, genes: NDArray[np.int32], max_genes: int) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Changed copies of a cell: the number of the group (without groups, the token of the gene) and the genes after it.

        Where no gene would be left as it was, there is nothing to compare, and no copy.
        """
        rank_of = dict(zip(genes.tolist(), range(len(genes)), strict=True))
        for tag, group in self._groups_of(rank_of):
            yield tag, edit_ranks(genes, rank_of, group, self.kind, max_genes)

    def count(self, genes: NDArray[np.int32]) -> int:
        """Number of the copies that :meth:`of` makes."""
        return sum(1 for _ in self._groups_of(dict(zip(genes.tolist(), range(len(genes)), strict=True))))

    def _groups_of(self, rank_of: Mapping[int, int]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """What is changed in a cell, by its tag: genes in the order in which they come to the front."""
        each = ((token, (token,)) for token in rank_of)
        for tag, group in each if self.groups is None else enumerate(self.groups):
            if self.anchor is not None:
                if self.anchor not in rank_of or self.anchor in group:
                    continue
                group = tuple(sorted((self.anchor, *group), key=lambda token: rank_of.get(token, -1)))
            elif self.groups is None and self.kind == "overexpress" and rank_of[tag] == 0:
                continue  # it is the first already
            changed = set(group)
            if not rank_of.keys() <= changed and (self.kind == "overexpress" or changed <= rank_of.keys()):
                yield tag, group

    def tokens(self, tag: int) -> list[int]:
        """The tokens that a copy with this tag differs in."""
        group = (tag,) if self.groups is None else self.groups[tag]
        return [*group] if self.anchor is None else [*group, self.anchor]


def edit_ranks(
    genes: NDArray[np.int32], rank_of: Mapping[int, int], group: Sequence[int], kind: Kind, max_genes: int
) -> NDArray[np.int32]:
    """Change some of the genes of a cell, which expresses all of them, except for ``"overexpress"``.

    Parameters
    ----------
    genes
        Tokens of the genes of the cell, highest rank first.
    rank_of
        Position of each of them.
    group
        Tokens to change together.
    kind
        ``"delete"`` takes them out. ``"overexpress"`` puts them first, in the order of ``group``, also those that the
        cell does not express. ``"inhibit"`` and ``"activate"`` move them by ``ceil(n / 4)`` of the ``n`` ranks, down or
        up, but not beyond the ends; the other genes close up.
    max_genes
        Genes that the model takes; what overexpression pushes beyond them is cut off.

    Returns
    -------
    The genes after it.
    """
    ranks = [rank_of[token] for token in group if token in rank_of]
    rest = np.delete(genes, ranks)
    if kind == "overexpress":
        return np.concatenate([np.asarray(group, genes.dtype), rest])[:max_genes]
    if kind == "delete":
        return rest
    step = -(-len(genes) // 4) * (1 if kind == "inhibit" else -1)
    n, k = len(genes), np.arange(len(ranks))
    places = np.clip(np.sort(ranks) + step, k, n - len(k) + k)  # at the ends, one beside the other
    moved = np.empty_like(genes)
    moved[places] = genes[np.sort(ranks)]
    moved[np.delete(np.arange(n), places)] = rest
    return moved
