"""A model from outside scfm that draws genes: often those with many counts, and always the same ones for one cell."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from scfm.encode import OrderEncoder
from scfm.genes import Vocabulary
from scfm.model import FoundationModel, TokenBlock, register
from scfm.weights import ModelCard, read_cards


@dataclass(frozen=True)
class SampleConfig:
    """Sizes: one vector of ``hidden_size`` features a gene."""

    vocab_size: int
    hidden_size: int
    n_layers: int = 0


@dataclass(frozen=True)
class SampleOptions:
    seed: int = 0
    """Another seed draws other genes."""


def sample(block: Any, encode: OrderEncoder, seed: int, n: int) -> TokenBlock:
    """Draw genes of each cell, with replacement: draw ``i`` is a function of ``seed``, ``i`` and what the cell holds."""
    found, drawn = encode(block), [np.zeros(0, np.int32)]
    for start, stop in pairwise(found.offsets):
        genes, counts = found.tokens[start:stop][1:], found.values[start:stop][1:].astype(np.float64)  # no start token
        if len(genes):
            key = blake2b(b"%d " % seed + genes.tobytes() + counts.tobytes(), digest_size=16).digest()
            at = np.random.Philox(key=int.from_bytes(key)).random_raw(n) * 2.0**-64 * counts.sum()
            drawn.append(genes[np.searchsorted(np.cumsum(counts)[:-1], at, side="right")])
    return TokenBlock(found.row0, np.concatenate(drawn), np.append(0, np.cumsum(found.n_genes > 0) * n), found.n_genes)


@register(read_cards(Path(__file__).with_name("scfm_sampled.toml"), "sampled"))
class SampledGenes(FoundationModel):
    """A linear layer on the mean of the vectors of the genes that were drawn."""

    family = "sampled"
    poolings = ("mean",)
    config_class = SampleConfig
    options_class = SampleOptions

    @classmethod
    def local_folder(cls, card: ModelCard) -> Path:
        """Folder in the cache; the weights are drawn when it is not there."""
        folder = super().local_folder(card)
        if not folder.is_dir():
            folder.mkdir(parents=True)
            n_genes, n = card.architecture["vocab_size"], card.architecture["hidden_size"]
            Vocabulary.of_names([f"ENSG{i:011d}" for i in range(1, n_genes + 1)], []).save(folder)
            drawn = np.random.default_rng(0).standard_normal((n_genes + n, n)).astype("f4")
            save_file({"0.weight": drawn[:n_genes], "1.weight": drawn[n_genes:]}, folder / "model.safetensors")
            card.write(folder)
        return folder

    def encoder(self, source: Any, genes: Any, options: Any) -> Any:
        """All genes of a cell by token, whatever their order in the data, and then the draws."""
        tokens, no_prefix = genes.tokens, np.full(source.n_obs, -1, np.int32)
        encode = OrderEncoder(tokens, len(tokens), 0, no_prefix, order="vocabulary", read_last=True)
        return partial(sample, encode=encode, seed=options.family.seed, n=options.max_tokens)

    def network(self, n_layers: int) -> Any:
        """A table that takes the mean of its rows, and a linear layer."""
        from torch.nn import EmbeddingBag, Linear, Sequential

        n = self.config.hidden_size
        network = Sequential(EmbeddingBag(self.config.vocab_size, n, mode="mean"), Linear(n, n, bias=False))
        network.load_state_dict({name: self.tensors[name] for name in network.state_dict()})
        return network

    def forward(self, network: Any, batch: Any, options: Any) -> Any:
        """One vector per cell; as many genes were drawn from each."""
        import torch

        return network(torch.from_numpy(batch.tokens.reshape(len(batch.rows), -1)).to(network[1].weight.device))
