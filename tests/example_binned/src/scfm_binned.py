"""A model from outside scfm with an encoder of its own: genes, each with the bin of its count within the cell."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from scfm.genes import Vocabulary
from scfm.model import FoundationModel, TokenBlock, register
from scfm.tasks import edit_values
from scfm.weights import ModelCard, read_cards


@dataclass(frozen=True)
class BinConfig:
    """Sizes: a vector of ``hidden_size`` features for each gene and each bin."""

    vocab_size: int
    n_bins: int
    hidden_size: int
    n_layers: int = 0


def encode(block: Any, column_tokens: np.ndarray, n_bins: int) -> TokenBlock:
    """Give each gene of a cell the quantile bin of its count; all genes are kept."""
    if not (np.isfinite(block.data) & (block.data >= 0)).all():
        msg = f"A cell from {block.row0} on has a count that is negative, infinite or NaN."
        raise ValueError(msg)
    kept, bins, n_genes = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)], np.zeros(block.n_cells, np.int64)
    for row, (start, stop) in enumerate(pairwise(block.indptr)):
        tokens, counts = column_tokens[block.indices[start:stop]], block.data[start:stop]
        order = np.lexsort((counts, tokens))[np.count_nonzero(tokens < 0) :]  # adds up in one order
        sums = np.bincount(tokens[order], counts[order])
        genes = np.flatnonzero(sums).astype(np.int32)
        n_genes[row] = len(genes)
        if len(genes):
            edges = np.quantile(sums[genes], np.linspace(0, 1, n_bins + 1)[1:-1])
            kept.append(genes)
            bins.append(np.searchsorted(edges, sums[genes]).astype(np.float32))
    offsets = np.append(0, np.cumsum(n_genes))
    return TokenBlock(block.row0, np.concatenate(kept), offsets, n_genes, np.concatenate(bins))


@register(read_cards(Path(__file__).with_name("scfm_binned.toml"), "binned"))
class BinnedValues(FoundationModel):
    """Vectors of the genes of a cell times those of their bins, and the mean of them."""

    family = "binned"
    poolings = ("mean", "gene")
    config_class = BinConfig

    @classmethod
    def local_folder(cls, card: ModelCard) -> Path:
        """Folder in the cache; the weights are drawn when it is not there."""
        folder, sizes = super().local_folder(card), BinConfig(**card.architecture)
        if not folder.is_dir():
            folder.mkdir(parents=True)
            n, n_genes = sizes.hidden_size, sizes.vocab_size
            Vocabulary.of_names([f"ENSG{i:011d}" for i in range(1, n_genes + 1)], []).save(folder)
            drawn = np.random.default_rng(0).standard_normal((n_genes + sizes.n_bins, n)).astype("f4")
            save_file({"genes": drawn[:n_genes], "bins": drawn[n_genes:]}, folder / "model.safetensors")
            card.write(folder)
        return folder

    def encoder(self, source: Any, genes: Any, options: Any) -> Any:
        """Genes and bins."""
        return partial(encode, column_tokens=genes.tokens, n_bins=self.config.n_bins)

    def perturber(self, kind: Any, options: Any) -> Any:
        """Put genes into another bin."""
        highest = self.config.n_bins - 1
        return partial(edit_values, kind=kind, max_genes=self.max_genes(options), highest=highest, whole=True)

    def network(self, n_layers: int) -> Any:
        """A table for the genes and one for the bins."""
        from torch.nn import Embedding, ModuleDict

        return ModuleDict({name: Embedding.from_pretrained(self.tensors[name].clone()) for name in ("genes", "bins")})

    def forward(self, network: Any, batch: Any, options: Any) -> Any:
        """One vector per cell, or per gene."""
        import torch

        from scfm.nn import pool_mean

        device = network["genes"].weight.device
        tokens, bins = (torch.from_numpy(each).to(device).long() for each in (batch.tokens, batch.values))
        states = network["genes"](tokens) * network["bins"](bins)
        return states if options.pooling == "gene" else pool_mean(states, batch.lengths.tolist())
