"""What models share that read the ranked genes of a cell with a BERT."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from scfm._settings import settings
from scfm.encode import RankEncoder
from scfm.model._base import FoundationModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from scfm._types import CountBlock, TokenBatch, TokenBlock
    from scfm.encode import Depth
    from scfm.genes import GeneMap
    from scfm.model.recipe import RunOptions
    from scfm.nn import BertConfig, BertEncoder
    from scfm.read import CountSource

__all__ = ["RankBert"]


class RankBert(FoundationModel):
    """A BERT over genes ranked by expression, special tokens around them as the vocabulary has them."""

    reads_ranks = True

    @property
    def config(self) -> BertConfig:
        """Sizes of the network."""
        return self._config_of(self.card.architecture)

    def _config_of(self, architecture: Mapping[str, Any]) -> BertConfig:
        from scfm.nn import BertConfig

        try:
            return BertConfig(**architecture)
        except TypeError as error:
            msg = f"The architecture of {self.card.id} is none of a BERT ({error}); convert the model again."
            raise ValueError(msg) from error

    @property
    def has_eos(self) -> bool:
        """Whether every cell ends with a special token."""
        return "<eos>" in self.vocabulary.special_tokens

    def check(self) -> None:
        """Compare vocabulary and positions with the architecture."""
        if self.card.max_tokens > self.config.max_positions:
            msg = f"max_tokens is {self.card.max_tokens}, but the weights have {self.config.max_positions} positions."
            raise ValueError(msg)
        if self.vocabulary.medians is None:
            msg = "The vocabulary has no medians, by which genes are ranked: convert the model again."
            raise ValueError(msg)
        size = self.vocabulary.size
        if size != self.config.vocab_size:
            msg = f"The vocabulary has {size:,} tokens, the weights {self.config.vocab_size:,}: they do not belong together."
            raise ValueError(msg)

    def max_genes(self, options: RunOptions) -> int:
        """Genes that fit beside the special tokens."""
        return options.max_tokens - self.has_cls - self.has_eos

    @abstractmethod
    def depth(self, source: CountSource, genes: GeneMap) -> Depth:
        """Totals of the cells as upstream takes them, with its rounding."""

    def kept_cells(self, source: CountSource, options: RunOptions) -> NDArray[np.bool_] | None:
        """Cells that the options of the family keep; ``None``: all."""
        return None

    def build_encoder(
        self, source: CountSource, genes: GeneMap, options: RunOptions
    ) -> Callable[[CountBlock], TokenBlock]:
        """Rank value encoding; in compat mode with upstream's totals and rounding."""
        specials = self.vocabulary.special_tokens
        return RankEncoder(
            genes.tokens,
            self.vocabulary.median_of_token,
            options.max_tokens,
            first=specials.get("<cls>", -1),
            last=specials.get("<eos>", -1),
            merge=genes.sums,
            upstream=self.depth(source, genes) if options.compat else None,
            keep_cells=self.kept_cells(source, options),
            threads=settings.threads,
        )

    def new_network(self, n_layers: int) -> BertEncoder:
        """The network, without weights."""
        from scfm.nn import BertEncoder

        return BertEncoder(self.config, n_layers)

    def build_network(self, n_layers: int) -> torch.nn.Module:
        """The network with the first layers only, without a head."""
        import torch

        with torch.device("meta"):
            network = self.new_network(n_layers)
        network.load_published(self.tensors)
        return network

    def forward(self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions) -> torch.Tensor:
        """Run the layers and pool."""
        import torch

        tokens = torch.from_numpy(batch.tokens)
        hidden: torch.Tensor = network(tokens, batch.lengths, first_only=self.reads_first(options.pooling))
        return self.pool(network, hidden, batch.lengths, options.pooling)

    @staticmethod
    def reads_first(pooling: str) -> bool:
        """Whether a pooling reads the first token of a cell and no other."""
        return pooling not in ("mean", "gene")

    def pool(
        self, network: torch.nn.Module, hidden: torch.Tensor, lengths: NDArray[np.int64], pooling: str
    ) -> torch.Tensor:
        """From hidden states (of the first tokens only, where nothing else is read) to what the pooling asks for."""
        from scfm.nn import pool_mean

        if pooling == "mean":
            return pool_mean(hidden, lengths, skip_first=int(self.has_cls), skip_last=int(self.has_eos))
        return hidden
