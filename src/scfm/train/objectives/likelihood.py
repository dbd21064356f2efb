"""Likelihood of genes and counts (TranscriptFormer, Pearce et al. 2025, doi:10.1101/2025.04.25.650731)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from scfm.nn import TranscriptFormer, TranscriptFormerHeads, likelihood_targets
from scfm.train.objective import Objective, Outputs, Term, TrainingBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scfm.model import FoundationModel

__all__ = ["Likelihood"]

SAMPLE = 100
"""Genes whose vectors are looked at."""


class Likelihood(Objective):
    """How badly each gene of a cell, and its count, are predicted from the genes before it.

    With ``oⱼ`` the hidden state before gene ``gⱼ`` is read, ``G`` the input state of a gene and ``cⱼ`` the counts of the
    cell, the expected count is

        μⱼ = softmax_j( b[gⱼ] + MLP(oⱼ, G(gⱼ)) ) · Σ c,

    and the loss the mean over genes of

        −log ZTP(cⱼ; μⱼ + ε) − w · log softmax_v( s · tanh(MLP′(oⱼ) / s) ) at v = gⱼ,

    with the zero-truncated Poisson ``log ZTP(c; x) = c log x − max(0, x − softplus(−x)) − log c!`` and the bound ``s`` of
    logits. The published training takes both means over a batch, but divides the second by the places of padding, too
    (max_genes for each cell), so that genes weigh less there the shorter the cells are: by the factor mean number of
    genes of a cell / max_genes, which ``gene_weight`` can take over.

    Parameters
    ----------
    gene_weight
        ``w``, of the likelihood of genes.

    Raises
    ------
    ValueError
        If ``gene_weight`` is negative.
    """

    def __init__(self, gene_weight: float = 1.0) -> None:
        super().__init__()
        if not gene_weight >= 0:
            msg = f"gene_weight must not be negative, got {gene_weight}."
            raise ValueError(msg)
        self.gene_weight = gene_weight
        self.heads: TranscriptFormerHeads

    def build(self, model: FoundationModel, network: nn.Module, cell_types: Sequence[str] = ()) -> None:
        """Make the heads, with the weights of ``model`` where it has them.

        Raises
        ------
        TypeError
            If the network is no TranscriptFormer.
        ValueError
            If the genes have no protein vectors.
        """
        if not isinstance(network, TranscriptFormer):
            msg = f"The objective likelihood trains models of the family 'transcriptformer'; the network is a {type(network).__name__}."
            raise TypeError(msg)
        genes = torch.from_numpy(model.vocabulary.tokens[:SAMPLE].astype(np.int64))
        if not network.gene_vectors[genes].any():
            msg = "The genes have no protein vectors, which TranscriptFormer reads: pass their file as gene_vectors."
            raise ValueError(msg)
        self.heads = TranscriptFormerHeads(network.config)
        if any(name.startswith("gene_id_head.") for name in model.tensors):
            self.heads.load_published(model.tensors)
        self._start = model.vocabulary.special_tokens["[START]"]

    def count(self, batch: TrainingBatch) -> int:
        """Genes."""
        return int(self._is_gene(batch).sum())

    def forward(self, outputs: Outputs, batch: TrainingBatch) -> Term:
        """Both parts, summed over genes."""
        if batch.batch.values is None:
            msg = "The objective likelihood needs the counts of the tokens, which this batch lacks."
            raise ValueError(msg)
        is_gene = self._is_gene(batch)
        cell = np.repeat(np.arange(len(batch.batch.lengths)), batch.batch.lengths)[is_gene]
        lengths = np.bincount(cell, minlength=len(batch.batch.lengths)).tolist()
        at, device = torch.from_numpy(np.flatnonzero(is_gene)), outputs.hidden.device
        genes, counts = (torch.from_numpy(part)[at] for part in (batch.batch.tokens, batch.batch.values))
        states = outputs.hidden[(at - 1).to(device)]
        own = outputs.network.gene_states(genes)  # type: ignore[operator]
        genes, counts = genes.to(device), counts.to(device)
        expected = self.heads.expected_counts(states, genes, own, counts, lengths)
        count = -self.heads.count_log_likelihood(expected, counts, clip=0).sum()
        gene = -self.heads.gene_log_likelihood(states, genes).sum()
        return Term(count + self.gene_weight * gene, {"count": count.detach(), "gene": gene.detach()})

    def _is_gene(self, batch: TrainingBatch) -> NDArray[np.bool_]:
        tokens = batch.batch.tokens
        return (tokens != self._start) & (tokens < self.heads.config.vocab_size)

    def published_tensors(self) -> dict[str, Tensor]:
        """Count head and gene head."""
        return likelihood_targets(self.heads)

    def state(self) -> dict[str, Any]:
        """Name and arguments."""
        return super().state() | {"gene_weight": self.gene_weight}
