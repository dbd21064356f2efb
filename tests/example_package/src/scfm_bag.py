"""A model from outside scfm: a cell is the mean of the vectors of the genes that it expresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.encode import RankEncoder
from scfm.genes import Vocabulary
from scfm.model import FoundationModel, register
from scfm.weights import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    import torch

N_GENES, WIDTH = 30, 4
CARD = ModelCard(
    id="bag-of-genes",
    family="bag",
    architecture={"n_layers": 0, "hidden_size": WIDTH},
    pooling="mean",
    max_tokens=N_GENES,
    aliases=("bog",),
    license="CC0-1.0",
    description="vectors drawn at random",
)


@dataclass(frozen=True)
class BagOptions:
    """Options of this family.

    Parameters
    ----------
    scale
        Factor of all embeddings.
    """

    scale: float = 1.0


@register([CARD])
class BagOfGenes(FoundationModel):
    """Mean of the vectors of the genes of a cell."""

    family = "bag"
    poolings = ("mean",)
    options_class = BagOptions

    @classmethod
    def local_folder(cls, card: ModelCard) -> Path:
        """Folder in the cache; the weights are made when it is not there."""
        from safetensors.numpy import save_file

        folder = super().local_folder(card)
        if not folder.is_dir():
            genes = np.array([f"ENSG{i:011d}" for i in range(1, N_GENES + 1)])
            vectors = np.random.default_rng(0).standard_normal((N_GENES, WIDTH)).astype("f4")
            folder.mkdir(parents=True)
            Vocabulary(genes, np.arange(N_GENES, dtype=np.int32), np.ones(N_GENES)).save(folder)
            save_file({"vectors": vectors}, folder / "model.safetensors")
            card.write(folder)
        return folder

    @classmethod
    def recognizes(cls, config: Any) -> bool:
        """There is no published folder."""
        return False

    @classmethod
    def read_published(cls, folder: Any, config: Any, dictionaries: Any) -> tuple[ModelCard, Vocabulary]:
        """There is no published folder."""
        raise NotImplementedError

    @classmethod
    def read_vocabulary(cls, card: ModelCard, folder: Any, dictionaries: Any) -> Vocabulary:
        """There are no dictionaries."""
        raise NotImplementedError

    def check(self) -> None:
        """Compare the table with the vocabulary."""
        if len(self.tensors["vectors"]) != self.vocabulary.size:
            msg = f"There are {len(self.tensors['vectors'])} vectors for {self.vocabulary.size} genes."
            raise ValueError(msg)

    def build_encoder(self, source: Any, genes: Any, options: Any) -> RankEncoder:
        """The genes of each cell; their order plays no part."""
        return RankEncoder(genes.tokens, self.vocabulary.median_of_token, options.max_tokens)

    def build_network(self, n_layers: int) -> torch.nn.Module:
        """A table that takes the mean of its rows."""
        from torch.nn import EmbeddingBag

        return EmbeddingBag.from_pretrained(self.tensors["vectors"].clone(), mode="mean")

    def forward(self, network: torch.nn.Module, batch: Any, options: Any) -> torch.Tensor:
        """One vector per cell."""
        import torch

        offsets = np.concatenate([[0], np.cumsum(batch.lengths)[:-1]])
        device = next(network.parameters()).device
        tokens, starts = (torch.from_numpy(values).to(device) for values in (batch.tokens, offsets))
        means: torch.Tensor = network(tokens, starts)
        return means * options.family.scale
