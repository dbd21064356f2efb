"""ESM2-CE, the baseline of the TranscriptFormer paper (doi:10.1101/2025.04.25.650731): sums of protein vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from scfm.model.families.transcriptformer.sequences import START, GeneSequences
from scfm.model.registry import cards, register

if TYPE_CHECKING:
    import torch

    from scfm._types import TokenBatch
    from scfm.encode import OrderEncoder
    from scfm.genes import GeneMap
    from scfm.model.recipe import RunOptions
    from scfm.read import CountSource
    from scfm.weights import ModelCard

__all__ = ["ESM2CE"]


@register(cards("esm2ce"))
class ESM2CE(GeneSequences):
    """Sum of the ESM-2 vectors of the genes that a cell expresses, over 2,047; counts play no part.

    It takes the weights of a TranscriptFormer of the same vocabulary, of which it reads the gene vectors only.
    """

    family = "esm2ce"
    weights_family = "transcriptformer"

    @classmethod
    def weights_id(cls, card: ModelCard) -> str:
        """The TranscriptFormer with the same vocabulary."""
        return card.id.replace("esm2ce-", "tf-")

    @property
    def n_layers(self) -> int:
        """None: there is no network."""
        return 0

    @property
    def n_features(self) -> int:
        """Features of a protein vector."""
        return self.config.gene_vector_size

    def network(self, n_layers: int) -> torch.nn.Module:
        """The gene vectors, as a table that is filled as genes occur."""
        from scfm.nn import GeneVectors

        return GeneVectors(self.tensors, self.config.n_assays)

    def forward(self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions) -> torch.Tensor:
        """Sum up, leaving out assay and start token."""
        import torch

        vectors: torch.Tensor = network(torch.from_numpy(batch.tokens))
        if options.pooling == "gene":
            return vectors
        is_gene = (batch.tokens < self.config.vocab_size) & (batch.tokens != self.card.special_tokens[START])
        vectors *= torch.from_numpy(is_gene).to(vectors)[:, None]
        cells = vectors.split(batch.lengths.tolist())
        return torch.stack([cell.sum(dim=0, dtype=torch.float32) for cell in cells]) / self.config.max_genes

    def encoder(self, source: CountSource, genes: GeneMap, options: RunOptions) -> OrderEncoder:
        """As for TranscriptFormer, with all genes of a cell among the tokens."""
        return replace(super().encoder(source, genes, options), read_last=True)
