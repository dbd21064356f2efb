"""TranscriptFormer's network, pooling and likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from scfm.model.families.transcriptformer.score import Scorer
from scfm.model.families.transcriptformer.sequences import GeneSequences
from scfm.model.registry import cards, register

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from scfm._types import TokenBatch
    from scfm.model.recipe import RunOptions
    from scfm.nn import AttentionTile
    from scfm.nn import TranscriptFormer as Network
    from scfm.tasks.predict_genes import Predictor

__all__ = ["TranscriptFormer"]


@register(cards("transcriptformer"))
class TranscriptFormer(GeneSequences):
    """TranscriptFormer, all published checkpoints.

    A cell is its assay, a start token, and up to 2,047 expressed genes with their counts. The embedding of a cell is
    the sum of the states of the start token and all genes but the last possible one, over 2,047.
    """

    family = "transcriptformer"

    def network(self, n_layers: int) -> torch.nn.Module:
        """The first layers only, without heads."""
        import torch

        from scfm.nn import TranscriptFormer as Network

        with torch.device("meta"):
            network = Network(self.config, n_layers)
        network.load_published(self.tensors)
        return network

    def forward(self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions) -> torch.Tensor:
        """Run the layers and pool; in compat mode the state *before* a gene stands for the gene, as upstream."""
        import torch

        from scfm.nn import pool_sum

        assert batch.values is not None
        tokens, counts = torch.from_numpy(batch.tokens), torch.from_numpy(batch.values)
        hidden: torch.Tensor = network(tokens, counts, batch.lengths)
        if options.pooling == "gene":
            return torch.roll(hidden, 1, dims=0) if options.compat else hidden
        first = np.concatenate([[0], np.cumsum(batch.lengths)[:-1]])
        return pool_sum(hidden, batch.lengths, batch.tokens[first] >= self.config.vocab_size) / self.config.max_genes

    def predictor(self, options: RunOptions, device: torch.device, dtype: torch.dtype) -> Predictor:
        """Softmax of the gene head, which reads the state before a gene."""
        scorer = Scorer(self, self.config, options, device, dtype)
        return lambda network, states: scorer.heads.gene_log_probabilities(states)

    def attention_tiles(
        self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions
    ) -> Iterator[AttentionTile]:
        """Attention weights of the last of the layers: causal, and with the bias of the counts."""
        import torch

        assert batch.values is not None
        tokens, counts = torch.from_numpy(batch.tokens), torch.from_numpy(batch.values)
        return cast("Network", network).attention_tiles(tokens, counts, batch.lengths)

    def scorer(self, options: RunOptions, device: torch.device, dtype: torch.dtype) -> Scorer:
        """Compute log-likelihoods with the heads."""
        return Scorer(self, self.config, options, device, dtype)
