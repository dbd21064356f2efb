"""A model from outside scfm: a cell is the mean of the vectors of the genes that it expresses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.encode import RankEncoder
from scfm.genes import Vocabulary
from scfm.model import FoundationModel, register
from scfm.weights import ModelCard, read_cards

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BagConfig:
    """Sizes: one vector of ``hidden_size`` features a gene."""

    vocab_size: int
    hidden_size: int
    n_layers: int = 0


@dataclass(frozen=True)
class BagOptions:
    scale: float = 1.0
    """Factor of all embeddings."""


@register(read_cards(Path(__file__).with_name("scfm_bag.toml"), "bag"))
class BagOfGenes(FoundationModel):
    """Mean of the vectors of the genes of a cell."""

    family = "bag"
    poolings = ("mean",)
    config_class = BagConfig
    options_class = BagOptions

    @classmethod
    def local_folder(cls, card: ModelCard) -> Path:
        """Folder in the cache; the weights are drawn when it is not there."""
        from safetensors.numpy import save_file

        folder, n_genes = super().local_folder(card), card.architecture["vocab_size"]
        if not folder.is_dir():
            folder.mkdir(parents=True)
            genes = np.array([f"ENSG{i:011d}" for i in range(1, n_genes + 1)])
            Vocabulary(genes, np.arange(n_genes, dtype=np.int32), np.ones(n_genes)).save(folder)
            vectors = np.random.default_rng(0).standard_normal((n_genes, card.architecture["hidden_size"]))
            save_file({"vectors": vectors.astype("f4")}, folder / "model.safetensors")
            card.write(folder)
        return folder

    def encoder(self, source: Any, genes: Any, options: Any) -> RankEncoder:
        """The genes of each cell; their order plays no part."""
        return RankEncoder(genes.tokens, self.vocabulary.median_of_token, options.max_tokens)

    def network(self, n_layers: int) -> torch.nn.Module:
        """A table that takes the mean of its rows."""
        from torch.nn import EmbeddingBag

        return EmbeddingBag.from_pretrained(self.tensors["vectors"].clone(), mode="mean")

    def forward(self, network: Any, batch: Any, options: Any) -> torch.Tensor:
        """One vector per cell."""
        import torch

        starts = np.cumsum(batch.lengths) - batch.lengths
        tokens, starts = (torch.from_numpy(each).to(network.weight.device) for each in (batch.tokens, starts))
        return network(tokens, starts) * options.family.scale
