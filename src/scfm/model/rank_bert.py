"""What models share that read the ranked genes of a cell with a BERT; authors of such models may derive from it."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scfm._settings import settings
from scfm.encode import RankEncoder
from scfm.model._base import FoundationModel
from scfm.tasks import edit_ranks
from scfm.weights import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from scfm._types import CountBlock, TokenBatch, TokenBlock
    from scfm.encode import Depth
    from scfm.genes import GeneMap, Vocabulary
    from scfm.model.recipe import RunOptions
    from scfm.nn import AttentionTile, BertConfig, BertEncoder
    from scfm.read import CountSource
    from scfm.tasks import Kind, Perturber
    from scfm.tasks.predict_genes import Predictor

__all__ = ["RankBert"]


class RankBert(FoundationModel):
    """A BERT over genes ranked by expression, special tokens around them as the vocabulary has them."""

    config: BertConfig

    @property
    def config_class(self) -> type[BertConfig]:
        """Sizes of the network."""
        from scfm.nn import BertConfig

        return BertConfig

    @property
    def has_eos(self) -> bool:
        """Whether every cell ends with a special token."""
        return "<eos>" in self.vocabulary.special_tokens

    def validate_weights(self) -> None:
        """Compare vocabulary, positions and tensors with the architecture."""
        if self.card.max_tokens is None or self.card.max_tokens > self.config.max_positions:
            msg = f"max_tokens is {self.card.max_tokens}, but the weights have {self.config.max_positions} positions."
            raise ValueError(msg)
        if self.vocabulary.medians is None:
            msg = "The vocabulary has no medians, by which genes are ranked: convert the model again."
            raise ValueError(msg)
        super().validate_weights()

    def rank_frame(self) -> tuple[int, int]:
        """``<cls>`` and ``<eos>``, so far as the vocabulary has them."""
        specials = self.vocabulary.special_tokens
        return specials.get("<cls>", -1), specials.get("<eos>", -1)

    def perturber(self, kind: Kind, options: RunOptions) -> Perturber:
        """Move genes among the ranks."""
        return partial(edit_ranks, kind=kind, max_genes=self.max_genes(options))

    def max_genes(self, options: RunOptions) -> int:
        """Genes that fit beside the special tokens."""
        return options.max_tokens - self.has_cls - self.has_eos

    @abstractmethod
    def depth(self, source: CountSource, genes: GeneMap) -> Depth:
        """Totals of the cells as upstream takes them, with its rounding."""

    def kept_cells(self, source: CountSource, options: RunOptions) -> NDArray[np.bool_] | None:
        """Cells that the options of the family keep; ``None``: all."""
        return None

    def encoder(self, source: CountSource, genes: GeneMap, options: RunOptions) -> Callable[[CountBlock], TokenBlock]:
        """Rank value encoding; in compat mode with upstream's totals and rounding."""
        first, last = self.rank_frame()
        return RankEncoder(
            genes.tokens,
            self.vocabulary.median_of_token,
            options.max_tokens,
            first=first,
            last=last,
            merge=genes.sums,
            upstream=self.depth(source, genes) if options.compat else None,
            keep_cells=self.kept_cells(source, options),
            threads=settings.threads,
        )

    def new_network(self, n_layers: int) -> BertEncoder:
        """The network, without weights."""
        from scfm.nn import BertEncoder

        return BertEncoder(self.config, n_layers)

    def network(self, n_layers: int) -> torch.nn.Module:
        """The network with the first layers only, without a head."""
        import torch

        with torch.device("meta"):
            network = self.new_network(n_layers)
        network.load_published(self.tensors)
        return network

    def forward(self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions) -> torch.Tensor:
        """Run the layers and pool."""
        import torch

        from scfm.nn.deleting import copies_forward

        tokens, first_only = torch.from_numpy(batch.tokens), self.reads_first(options.pooling)
        hidden: torch.Tensor
        if batch.tags is None:
            hidden = network(tokens, batch.lengths, first_only=first_only)
        else:  # there may be several copies of a cell
            encoder, lengths, cells = cast("BertEncoder", network), batch.lengths.tolist(), batch.rows.tolist()
            hidden = copies_forward(encoder, tokens, lengths, cells, first_only=first_only)
        return self.pool(network, hidden, batch.lengths, options.pooling)

    @classmethod
    def new_card(cls, name: str, architecture: Mapping[str, Any], vocabulary: Vocabulary) -> ModelCard:
        """A card with the sizes given; pooled at ``<cls>`` where the vocabulary has it."""
        specials = dict(vocabulary.special_tokens)
        return ModelCard(
            id=name,
            family=cls.family,
            architecture={**architecture, "vocab_size": vocabulary.size},
            pooling="cls" if "<cls>" in specials else "mean",
            max_tokens=architecture.get("max_positions"),
            special_tokens=specials,
            species=vocabulary.species,
        )

    def training_network(self) -> BertEncoder:
        """The network with all layers."""
        network = self.new_network(self.n_layers)
        if self.tensors:
            network.load_published(self.tensors)
        return network

    def training_outputs(
        self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run all layers on all tokens, and pool."""
        import torch

        hidden: torch.Tensor = network(torch.from_numpy(batch.tokens), batch.lengths)
        read = hidden
        if self.reads_first(options.pooling):
            first = batch.firsts
            read = hidden[torch.from_numpy(first).to(hidden.device)]
        return hidden, self.pool(network, read, batch.lengths, options.pooling)

    def published_tensors(self, network: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Weights of the encoder."""
        from scfm.nn.bert import encoder_targets

        return {name: tensor.detach() for name, tensor in encoder_targets(cast("BertEncoder", network)).items()}

    def masked_outputs(
        self,
        network: torch.nn.Module,
        batch: TokenBatch,
        positions: Sequence[torch.Tensor],
        options: RunOptions,
        *,
        max_tokens: int,
    ) -> list[torch.Tensor]:
        """Embed copies of cells with ``<mask>`` in the place of a gene; they share the first layer."""
        import torch

        from scfm.nn.masking import masked_outputs

        tokens = torch.from_numpy(batch.tokens).split(batch.lengths.tolist())
        return masked_outputs(
            cast("BertEncoder", network),
            list(zip(tokens, positions, strict=True)),
            self.vocabulary.special_tokens["<mask>"],
            lambda hidden, lengths: self.pool(network, hidden, np.asarray(lengths), options.pooling),
            first_only=self.reads_first(options.pooling),
            max_tokens=max_tokens,
        )

    def predictor(self, options: RunOptions, device: torch.device, dtype: torch.dtype) -> Predictor:
        """Softmax of the published head of masked genes, whose output weights are the word embeddings."""
        import torch

        from scfm.nn import MaskedLMHead

        if not any(name.startswith("cls.predictions.") for name in self.tensors):
            msg = (
                f"{self.card.id} has no head that predicts genes: it was saved without it, as fine-tuned models are. Take the "
                "pretrained model."
            )
            raise TypeError(msg)
        with torch.device("meta"):
            head = MaskedLMHead(self.config)
        head.load_published(self.tensors)
        head.to(device=device, dtype=dtype).eval()

        def predict(network: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
            logits = head(states, cast("BertEncoder", network).word_embeddings.weight)
            return torch.log_softmax(logits.float(), dim=-1)

        return predict

    def attention_tiles(
        self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions
    ) -> Iterator[AttentionTile]:
        """Attention weights of the last of the layers."""
        import torch

        return cast("BertEncoder", network).attention_tiles(torch.from_numpy(batch.tokens), batch.lengths)

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
