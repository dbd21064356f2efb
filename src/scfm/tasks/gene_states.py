"""State of each gene in each cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scfm.run.sinks import GeneStatesSink
from scfm.tasks.embed import Embed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scfm.run.sinks import StatesWriter
    from scfm.tasks.task import SupportsForward

__all__ = ["GeneStates"]

BLOCK_BYTES = 2**28
"""Limit of the states that are held until their block is complete."""


class GeneStates(Embed):
    """The state of chosen genes in each cell that expresses them.

    Parameters
    ----------
    recipe, options
        The model, and the options of the run, with ``pooling="gene"``.
    gene_tokens
        Token of each chosen gene, −1 for one that the model does not know; shape ``(n_genes,)``.
    max_genes, n_features
        Genes of a cell that the model takes, and features of a state.
    writer
        Receives the states.
    """

    def __init__(
        self,
        recipe: SupportsForward,
        options: Any,
        gene_tokens: NDArray[np.int32],
        max_genes: int,
        n_features: int,
        writer: StatesWriter,
    ) -> None:
        super().__init__(recipe, options, GeneStatesSink(gene_tokens, writer))
        of_a_cell = 4 * min(len(gene_tokens), max_genes) * n_features
        self.block_rows = max(1, BLOCK_BYTES // max(1, of_a_cell))
