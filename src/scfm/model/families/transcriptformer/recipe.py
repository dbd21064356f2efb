"""TranscriptFormer's network, pooling and likelihood."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from scfm.model.families.transcriptformer.cells import ASSAY, UNKNOWN
from scfm.model.families.transcriptformer.score import Scorer
from scfm.model.families.transcriptformer.sequences import PAD, START, GeneSequences
from scfm.model.registry import cards, register
from scfm.tasks import edit_values
from scfm.weights import ModelCard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from scfm._types import TokenBatch
    from scfm.genes import Vocabulary
    from scfm.model.families.transcriptformer.options import TranscriptFormerOptions
    from scfm.model.recipe import RunOptions
    from scfm.nn import AttentionTile
    from scfm.nn import TranscriptFormer as Network
    from scfm.tasks import Kind, Perturber
    from scfm.tasks.predict_genes import Predictor

__all__ = ["TranscriptFormer"]


@register(cards("transcriptformer"))
class TranscriptFormer(GeneSequences):
    """TranscriptFormer, all published checkpoints.

    A cell is its assay, a start token, and up to 2,047 expressed genes with their counts. The embedding of a cell is
    the sum of the states of the start token and all genes but the last possible one, over 2,047.
    """

    family = "transcriptformer"
    context_poolings: ClassVar[tuple[str, ...]] = ("cell",)
    initial_architecture: ClassVar[Mapping[str, Any]] = {
        "n_assays": 1,
        "gene_vector_size": None,
        "hidden_size": 256,
        "n_layers": 6,
        "n_heads": 8,
        "intermediate_size": 512,
        "max_genes": 2047,
        "gene_head_size": 256,
    }
    initial_tokens = ("unknown", PAD, START, "[END]", "[RD]", "[CELL]", "[MASK]")

    @classmethod
    def new_card(cls, name: str, architecture: Mapping[str, Any], vocabulary: Vocabulary) -> ModelCard:
        """A card with the sizes given, and no assay but the unknown one."""
        if architecture["gene_vector_size"] is None:
            msg = f"The family {cls.family!r} reads vectors of the proteins of genes: pass their file as gene_vectors."
            raise ValueError(msg)
        return ModelCard(
            id=name,
            family=cls.family,
            architecture={**architecture, "vocab_size": vocabulary.size},
            pooling="cell",
            max_tokens=architecture["max_genes"] + 1,
            special_tokens=dict(vocabulary.special_tokens),
            aux_tokens={ASSAY: {UNKNOWN: 0}},
            species=vocabulary.species,
        )

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

        assert batch.values is not None
        tokens, counts = torch.from_numpy(batch.tokens), torch.from_numpy(batch.values)
        hidden: torch.Tensor = network(tokens, counts, batch.lengths)
        if options.pooling == "gene":
            return torch.roll(hidden, 1, dims=0) if options.compat else hidden
        return self._pooled(hidden, batch)

    def _pooled(self, hidden: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        from scfm.nn import pool_sum

        first = batch.firsts
        return pool_sum(hidden, batch.lengths, batch.tokens[first] >= self.config.vocab_size) / self.config.max_genes

    def training_network(self) -> torch.nn.Module:
        """All layers."""
        import scfm.nn

        return self.network(self.n_layers) if self.tensors else scfm.nn.TranscriptFormer(self.config)

    def training_outputs(
        self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run all layers, and pool."""
        hidden = self.forward(network, batch, replace(options, pooling="gene"))
        return hidden, self._pooled(hidden, batch)

    def published_tensors(self, network: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Weights of the layers, and the vectors of the genes."""
        return network.published()  # type: ignore[operator]

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

    def perturber(self, kind: Kind, options: RunOptions) -> Perturber:
        """Change the counts of genes, which are at most ``clip_counts``."""
        family: TranscriptFormerOptions = options.family
        if not family.filter_to_vocabs:
            msg = (
                "filter_to_vocabs=False gives one token to all genes that the model does not know, so they cannot be "
                "perturbed one by one; leave it out."
            )
            raise ValueError(msg)
        if kind == "overexpress" and family.clip_counts is None:
            msg = "kind='overexpress' gives genes the count clip_counts=, which is None; give a number, as the default 30."
            raise ValueError(msg)
        highest = np.inf if family.clip_counts is None else family.clip_counts
        return partial(edit_values, kind=kind, max_genes=self.max_genes(options), highest=highest)
