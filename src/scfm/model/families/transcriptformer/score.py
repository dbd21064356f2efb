"""Log-likelihoods of cells under TranscriptFormer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.model.recipe import Recipe, RunOptions
    from scfm.nn import GeneScores, TranscriptFormerConfig
    from scfm.nn import TranscriptFormer as Network

__all__ = ["Scorer"]


class Scorer:
    """Compute how well each gene and count of a cell is predicted from the genes before it.

    Parameters
    ----------
    model
        Model with its weights.
    config
        Sizes of its network.
    options
        Choices of the run; the pooling is ``"gene"``, so that the last gene is among the tokens.
    device, dtype
        Where and how the heads are computed.

    Raises
    ------
    ValueError
        If the genes were replaced by those of other species, which the gene head does not know.
    """

    def __init__(
        self,
        model: Recipe,
        config: TranscriptFormerConfig,
        options: RunOptions,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        import torch

        from scfm.nn import TranscriptFormerHeads

        n_genes = len(model.tensors["mu.gene_embedding.weight"])
        self.upstream = options.compat is not None
        if options.family.pretrained_embedding is not None and not self.upstream:
            msg = (
                "The heads of the model know the genes of its checkpoint only, so cells with other genes "
                "(pretrained_embedding=) cannot be scored. compat='upstream' computes what upstream returns, which has no meaning."
            )
            raise ValueError(msg)
        with torch.device("meta"):
            heads = TranscriptFormerHeads(replace(config, vocab_size=n_genes))
        heads.load_published(model.tensors)
        self.heads = heads.to(device=device, dtype=dtype).eval()
        self._n_tokens, self._n_genes = config.vocab_size, n_genes
        self._max_genes = model.max_genes(options)
        self._clip = float(options.family.clip_counts or 0)
        self._start, self._end = (model.card.special_tokens[name] for name in ("[START]", "[END]"))

    def __call__(self, network: torch.nn.Module, batch: TokenBatch) -> Tensor:
        """Log-likelihoods of the count and of the gene of each token, and 1; zeros where it is no gene, ``(n_tokens, 3)``."""
        import torch

        scores, _ = self.by_gene(network, batch)
        found = torch.zeros((len(batch.tokens), 3), device=scores.gene.device)
        at = torch.from_numpy(np.flatnonzero(self._is_gene(batch)))
        found[at] = torch.stack([scores.count, scores.gene, torch.ones_like(scores.gene)], dim=1)
        return found

    def by_gene(self, network: torch.nn.Module, batch: TokenBatch) -> tuple[GeneScores, list[int]]:
        """How well each gene of the batch is predicted, in the order of the tokens, and the number of genes of each cell."""
        import torch

        from scfm.nn import GeneScores

        assert batch.values is not None
        cell = np.repeat(np.arange(len(batch.rows)), batch.lengths)
        is_gene = self._is_gene(batch)
        at = torch.from_numpy(np.flatnonzero(is_gene))
        lengths = np.bincount(cell[is_gene], minlength=len(batch.rows)).tolist()
        tokens, counts = torch.from_numpy(batch.tokens), torch.from_numpy(batch.values)
        hidden = network(tokens, counts, batch.lengths)
        device = hidden.device
        genes, counted = tokens[at], counts[at].to(device)
        self._check_known(genes)
        states = hidden[(at - 1).to(device)]
        own = cast("Network", network).gene_states(genes)
        expected = self.heads.expected_counts(states, genes.to(device), own, counted, lengths)
        if self.upstream:  # the last place of a full cell counts as the end of the sequence
            last = torch.from_numpy(np.cumsum(lengths)[np.asarray(lengths) == self._max_genes] - 1)
            genes[last], counted[last.to(device)] = self._end, 1.0
        return GeneScores(
            expected,
            self.heads.count_log_likelihood(expected, counted, self._clip),
            self.heads.gene_log_likelihood(states, genes.to(device)),
        ), lengths

    def _is_gene(self, batch: TokenBatch) -> NDArray[np.bool_]:
        return (batch.tokens != self._start) & (batch.tokens < self._n_tokens)

    def _check_known(self, genes: Tensor) -> None:
        beyond = int((genes >= self._n_genes).sum())
        if beyond:
            msg = (
                f"{beyond} genes have tokens beyond the {self._n_genes:,} that the heads of the model know; upstream "
                "stops here with an IndexError. Cells of other species can be embedded, not scored."
            )
            raise ValueError(msg)
