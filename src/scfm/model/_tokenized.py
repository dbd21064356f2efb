"""A pass of a model over cells that are tokenised already."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from scfm._types import TokenBlock
from scfm.model.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray

    from scfm.model.arguments import Arguments
    from scfm.model.recipe import Recipe, RunOptions
    from scfm.read import TokenizedSource

__all__ = ["TokenizedSession", "tokenized_session"]


def tokenized_session(
    model: Recipe,
    source: TokenizedSource,
    arguments: Arguments,
    options: RunOptions,
    devices: tuple[torch.device, ...],
    dtype: torch.dtype,
) -> TokenizedSession:
    """Check that nothing is asked for that takes counts, and make a session.

    Raises
    ------
    TypeError
        If the model does not read ranked genes.
    ValueError
        If genes are to be pooled, an option chooses among counts, or the family has options of its own set.
    """
    if not model.implements("rank_frame"):
        msg = f"{model.card.id} reads counts; tokenised cells are for models that read ranked genes and nothing else."
        raise TypeError(msg)
    if options.pooling == "gene":
        msg = (
            "pooling='gene' takes counts, whose genes the result has; tokenised cells have none but those of the model."
        )
        raise ValueError(msg)
    family = options.family
    given = arguments.chosen_counts + [f.name for f in fields(family) if getattr(family, f.name) != f.default]
    if given:
        msg = f"{given[0]}= chooses among counts or cells, and {source} is tokenised already; leave it out."
        raise ValueError(msg)
    return TokenizedSession(model, source, options, devices, dtype)


@dataclass(frozen=True)
class TokenizedSession(Session):
    """A model, tokenised cells, and what is to be done."""

    source: TokenizedSource

    def encoder(self) -> Callable[[TokenBlock], TokenBlock]:
        """The step from stored tokens to those that the network reads."""
        specials = self.model.vocabulary.special_tokens
        first, last = self.model.rank_frame()
        others = np.asarray([token for token in specials.values() if token not in (first, last)])
        room = self.model.max_genes(self.options)

        def encode(block: TokenBlock) -> TokenBlock:
            starts, stops = _genes(block, first, last)
            used = _rows(block.tokens, starts, stops)
            wrong = np.isin(used[0], [*others, first, last])
            if wrong.any():
                at = int(np.flatnonzero(wrong)[0])
                msg = (
                    f"Cell {block.row0 + used[1][at]} holds the special token {used[0][at]} among its genes: it is padded, "
                    f"masked, or made for another model than {self.model.card.id}."
                )
                raise ValueError(msg)
            kept = np.minimum(stops - starts, room)
            tokens, lengths = _framed(block.tokens, starts, kept, first, last)
            return TokenBlock(block.row0, tokens, np.concatenate([[0], np.cumsum(lengths)]), stops - starts)

        return encode


def _genes(block: TokenBlock, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the genes of each cell start and stop, without the special tokens around them."""
    starts, stops = block.offsets[:-1].copy(), block.offsets[1:].copy()
    filled = np.flatnonzero(stops > starts)
    starts[filled] += block.tokens[starts[filled]] == first
    filled = np.flatnonzero(stops > starts)
    stops[filled] -= block.tokens[stops[filled] - 1] == last
    return starts, stops


def _rows(
    tokens: NDArray[np.int32], starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Tokens between starts and stops, and the cell of each."""
    lengths = stops - starts
    cells = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(cells)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return tokens[starts[cells] + within], cells


def _framed(
    tokens: NDArray[np.int32], starts: NDArray[np.int64], kept: NDArray[np.int64], first: int, last: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The first genes of each cell with the special tokens of the model around them, and the lengths of the cells."""
    genes, cells = _rows(tokens, starts, starts + kept)
    before, after = int(first >= 0), int(last >= 0)
    lengths = kept + before + after
    offsets = np.cumsum(lengths) - lengths
    framed = np.empty(int(lengths.sum()), np.int32)
    if before:
        framed[offsets] = first
    if after:
        framed[offsets + lengths - 1] = last
    framed[np.arange(len(genes)) + before + cells * (before + after)] = genes
    return framed, lengths
