"""Write tiny random checkpoints in the layouts of the authors."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = ["write_geneformer", "write_sccello"]


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

    Genes are ``ENSG00000000001`` and so on, with symbols ``GENE1`` and so on. The mapping has a retired id
    (``ENSG0001…``) for every tenth gene; the fourth and fifth gene share a median. Weights are spread widely enough that
    every part of the network matters.

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
        File name of the weights; ``.bin`` also has the tied decoder tensors.

    Returns
    -------
    ``folder``.
    """
    from scfm.nn import BertConfig, published_keys

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    specials = ["<pad>", "<mask>"] + ["<cls>", "<eos>"] * (version == 2)
    _write_dictionaries(folder, specials, n_genes, seed)
    sizes = (len(specials) + n_genes, hidden_size, n_layers, n_heads, max_tokens)
    config = _write_config(folder, sizes, architectures=["BertForMaskedLM"], type_vocab_size=2)
    required, optional = published_keys(BertConfig.from_dict(config))
    bias = {"cls.predictions.bias": optional["cls.predictions.bias"]}
    tensors = _random_tensors(required | bias, seed)
    if weights != "model.safetensors":
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    _save(tensors, folder / weights)
    return folder


def write_sccello(
    folder: str | Path,
    *,
    n_genes: int = 200,
    n_layers: int = 3,
    hidden_size: int = 16,
    n_heads: int = 2,
    max_tokens: int = 64,
    n_types: int = 12,
    seed: int = 0,
    weights: Literal["model.safetensors", "pytorch_model.bin"] = "model.safetensors",
) -> Path:
    """Write a random scCello in the published layout, with the dictionaries of a Geneformer V1 and a table of symbols.

    Genes are those of :func:`write_geneformer`; ``vocab_id2name.csv`` calls them ``NAME1`` and so on.

    Parameters
    ----------
    folder
        Folder to write.
    n_genes, n_layers, hidden_size, n_heads, max_tokens
        Sizes; the feed-forward width is twice ``hidden_size``.
    n_types
        Cell types of the ontology buffers, a chain in which each type is a child of the one before.
    seed
        Seed.
    weights
        File name of the weights; ``.bin`` has both names of the bias of each head, ``.safetensors`` one.

    Returns
    -------
    ``folder``.
    """
    import torch

    from scfm.nn import BertConfig
    from scfm.nn.sccello import sccello_keys

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    specials = ["<pad>", "<mask>"]
    _write_dictionaries(folder, specials, n_genes, seed)
    names = [f"ENSG{i:011d},NAME{i}" for i in range(1, n_genes + 1)]
    (folder / "vocab_id2name.csv").write_text("\n".join(["id,name", *names, ""]), encoding="utf-8")
    sizes = (len(specials) + n_genes + 1, hidden_size, n_layers, n_heads, max_tokens)
    architectures = ["PrototypeContrastiveForMaskedLM"]
    config = _write_config(folder, sizes, architectures=architectures, type_vocab_size=1, tau=0.01)
    required, optional = sccello_keys(BertConfig.from_dict(config), n_types=n_types)
    position_ids, ontology = "bert.embeddings.position_ids", ("ctgraph_sim", "cell_type_ancestor_mask")
    drawn = {name: shape for name, shape in (required | optional).items() if name not in (position_ids, *ontology)}
    tensors = _random_tensors(drawn, seed)
    steps = torch.arange(n_types)[:, None] - torch.arange(n_types)
    levels = (10 - steps.abs()).clamp(min=1).to(torch.int32)
    tensors |= {position_ids: torch.arange(max_tokens)[None], ontology[0]: levels, ontology[1]: (steps >= 0).int()}
    for head in ("cls", "cell_cls"):
        del tensors[f"{head}.predictions.dense_2.bias"]
        if weights != "model.safetensors":
            tensors[f"{head}.predictions.dense_2.bias"] = tensors[f"{head}.predictions.bias"]
    _save(tensors, folder / weights)
    return folder


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def _write_config(folder: Path, sizes: tuple[int, int, int, int, int], **more: object) -> dict[str, object]:
    """Write a config; the sizes are vocabulary, hidden size, layers, heads and positions."""
    vocab_size, hidden_size, n_layers, n_heads, max_tokens = sizes
    config = {
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "intermediate_size": 2 * hidden_size,
        "max_position_embeddings": max_tokens,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return config


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


def _random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        scale = 0.5 / shape[-1] ** 0.5 if len(shape) == 2 and "embeddings" not in name else 0.2
        tensors[name] = (
            1 + 0.2 * values if name.lower().endswith(("layernorm.weight", "layer_norm.weight")) else scale * values
        )
    return tensors
