"""Write random models as their authors publish them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["write_geneformer"]


def write_geneformer(
    folder: str | Path,
    *,
    version: Literal[1, 2] = 2,
    n_genes: int = 200,
    n_layers: int = 3,
    hidden_size: int = 16,
    n_heads: int = 2,
    max_tokens: int = 64,
    seed: int = 0,
    weights: Literal["model.safetensors", "pytorch_model.bin"] = "model.safetensors",
) -> Path:
    """Write a random Geneformer in the published layout: config, weights and the four pickled dictionaries.

    Genes are ``ENSG00000000001`` and on, with symbols ``GENE1`` and on. Every tenth gene has a retired id
    (``ENSG0001…``) that the mapping leads to it; the fourth and fifth gene share a median. Weights are wide enough
    that every part of the network matters.

    Parameters
    ----------
    folder
        Folder to write.
    version
        1: no ``<cls>`` and ``<eos>``; 2: with both.
    n_genes, n_layers, hidden_size, n_heads, max_tokens
        Sizes; the feed-forward width is twice ``hidden_size``.
    seed
        Seed.
    weights
        File format of the weights; ``.bin`` has the tied decoder tensors, too.

    Returns
    -------
    ``folder``.
    """
    import torch
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    specials = ["<pad>", "<mask>"] + ["<cls>", "<eos>"] * (version == 2)
    _write_dictionaries(folder, specials, n_genes, seed)
    config = {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": len(specials) + n_genes,
        "hidden_size": hidden_size,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "intermediate_size": 2 * hidden_size,
        "max_position_embeddings": max_tokens,
        "type_vocab_size": 2,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = _random_tensors(config, seed)
    if weights == "model.safetensors":
        save_file(tensors, folder / weights, metadata={"format": "pt"})
    else:
        words = tensors["bert.embeddings.word_embeddings.weight"]
        tied = {
            "cls.predictions.decoder.weight": words,
            "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
        }
        torch.save({**tensors, **tied}, folder / weights)
    return folder


def _write_dictionaries(folder: Path, specials: list[str], n_genes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    genes = [f"ENSG{i:011d}" for i in range(1, n_genes + 1)]
    medians = rng.lognormal(0.5, 0.8, n_genes)
    medians[min(4, n_genes - 1)] = medians[min(3, n_genes - 1)]
    retired = {f"ENSG0001{i:07d}": gene for i, gene in enumerate(genes) if i % 10 == 0}
    symbols = {f"GENE{i}": gene for i, gene in enumerate(genes, start=1)}
    tables = {
        "token_dictionary": {name: token for token, name in enumerate([*specials, *genes])},
        "gene_median_dictionary": dict(zip(genes, medians, strict=True)),
        "ensembl_mapping_dict": {gene: gene for gene in genes} | retired,
        "gene_name_id_dict": symbols,
    }
    for name, table in tables.items():
        (folder / f"{name}_gctiny.pkl").write_bytes(pickle.dumps(table))


def _random_tensors(config: dict[str, object], seed: int) -> dict[str, torch.Tensor]:
    import torch

    from scfm.nn import BertConfig, published_keys

    generator = torch.Generator().manual_seed(seed)
    required, optional = published_keys(BertConfig.from_dict(config))
    shapes = required | {"cls.predictions.bias": optional["cls.predictions.bias"]}
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        scale = 0.5 / shape[-1] ** 0.5 if len(shape) == 2 and "embeddings" not in name else 0.2
        tensors[name] = 1 + 0.2 * values if "LayerNorm.weight" in name else scale * values
    return tensors
