"""Changes of the genes of a cell: some go, come first, move among the ranks, or get another value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Genes", "Kind", "Perturber", "Perturbations", "edit_ranks", "edit_values"]

Kind = Literal["delete", "overexpress", "inhibit", "activate"]
"""Delete genes, raise them as far as the model reads it, or lower or raise them by some."""


@dataclass(frozen=True)
class Genes:
    """The genes of a cell in the order in which a model reads them, without special tokens."""

    tokens: NDArray[np.int32]
    """Shape ``(n_genes,)``."""
    values: NDArray[np.float32] | None = None
    """Value that the network reads with each, shape ``(n_genes,)``; ``None`` if it reads tokens alone."""

    @cached_property
    def place_of(self) -> dict[int, int]:
        """Position of each gene."""
        return dict(zip(self.tokens.tolist(), range(len(self.tokens)), strict=True))

    def part(self, span: slice) -> Genes:
        """Some of them."""
        return Genes(self.tokens[span], None if self.values is None else self.values[span])


Perturber = Callable[[Genes, Sequence[int]], Genes]
"""Changes some genes of a cell, given by their tokens. It expresses all of them, unless they are overexpressed."""


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

    def of(self, genes: Genes, edit: Perturber) -> Iterator[tuple[int, Genes]]:
        """Changed copies of a cell: the number of the group (without groups, the token of the gene) and the genes after it.

        Where no gene would be left as it was, there is nothing to compare, and no copy.
        """
        for tag, group in self._groups_of(genes):
            yield tag, edit(genes, group)

    def tags(self, genes: Genes) -> list[int]:
        """Tags of the copies that :meth:`of` makes."""
        return [tag for tag, _ in self._groups_of(genes)]

    def _groups_of(self, genes: Genes) -> Iterator[tuple[int, tuple[int, ...]]]:
        """What is changed in a cell, by its tag: genes in the order in which they come to the front."""
        place_of, ranked = genes.place_of, genes.values is None
        each = ((token, (token,)) for token in place_of)
        for tag, group in each if self.groups is None else enumerate(self.groups):
            if self.anchor is not None:
                if self.anchor not in place_of or self.anchor in group:
                    continue
                group = tuple(sorted((self.anchor, *group), key=lambda token: place_of.get(token, -1)))
            elif self.groups is None and self.kind == "overexpress" and ranked and place_of[tag] == 0:
                continue  # it is the first already
            changed = set(group)
            if not place_of.keys() <= changed and (self.kind == "overexpress" or changed <= place_of.keys()):
                yield tag, group

    def tokens(self, tag: int) -> list[int]:
        """The tokens that a copy with this tag differs in."""
        group = (tag,) if self.groups is None else self.groups[tag]
        return [*group] if self.anchor is None else [*group, self.anchor]


def edit_ranks(genes: Genes, group: Sequence[int], *, kind: Kind, max_genes: int) -> Genes:
    """Change genes of a cell whose ranks tell how much it expresses them, highest first.

    Parameters
    ----------
    genes, group
        As for :data:`Perturber`.
    kind
        ``"delete"`` takes them out. ``"overexpress"`` puts them first, in the order of ``group``, also those that the
        cell does not express. ``"inhibit"`` and ``"activate"`` move them by ``ceil(n / 4)`` of the ``n`` ranks, down or
        up, but not beyond the ends; the other genes close up.
    max_genes
        Genes that the model takes; what overexpression pushes beyond them is cut off.
    """
    tokens = genes.tokens
    ranks = [genes.place_of[token] for token in group if token in genes.place_of]
    rest = np.delete(tokens, ranks)
    if kind == "overexpress":
        return Genes(np.concatenate([np.asarray(group, tokens.dtype), rest])).part(slice(max_genes))
    if kind == "delete":
        return Genes(rest)
    step = -(-len(tokens) // 4) * (1 if kind == "inhibit" else -1)
    n, k = len(tokens), np.arange(len(ranks))
    places = np.clip(np.sort(ranks) + step, k, n - len(k) + k)  # at the ends, one beside the other
    moved = np.empty_like(tokens)
    moved[places] = tokens[np.sort(ranks)]
    moved[np.delete(np.arange(n), places)] = rest
    return Genes(moved)


def edit_values(
    genes: Genes, group: Sequence[int], *, kind: Kind, max_genes: int, highest: float, whole: bool = False
) -> Genes:
    """Change genes of a cell whose values tell how much it expresses them; they keep their places.

    Parameters
    ----------
    genes, group
        As for :data:`Perturber`.
    kind
        ``"delete"`` takes them out. ``"overexpress"`` sets them to the highest value; those that the cell does not express
        come first. ``"inhibit"`` and ``"activate"`` halve and double their values.
    max_genes
        Genes that the model takes; what overexpression pushes beyond them is cut off.
    highest
        Largest value that the model reads.
    whole
        Whether values are whole numbers, as bins are; halves are rounded down.
    """
    assert genes.values is not None
    places = [genes.place_of[token] for token in group if token in genes.place_of]
    if kind == "delete":
        return Genes(np.delete(genes.tokens, places), np.delete(genes.values, places))
    values = genes.values.copy()
    if kind == "overexpress":
        absent = np.asarray([token for token in group if token not in genes.place_of], genes.tokens.dtype)
        values[places] = highest
        values = np.concatenate([np.full(len(absent), highest, values.dtype), values])
        return Genes(np.concatenate([absent, genes.tokens]), values).part(slice(max_genes))
    changed = np.minimum(values[places] * (0.5 if kind == "inhibit" else 2), highest)
    values[places] = np.floor(changed) if whole else changed
    return Genes(genes.tokens, values)
