"""Tiny random TranscriptFormer checkpoints, and a slow reference implementation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

__all__ = [
    "TranscriptFormerOracle",
    "TranscriptFormerScores",
    "esm2ce_cell",
    "transcriptformer_cell",
    "transcriptformer_scores",
    "transcriptformer_states",
    "transcriptformer_tokens",
    "write_transcriptformer",
]

_TABLE = "gene_embeddings.embedding.weight"
_LOSS_EPS = 1e-6
_CONFIG = """{"model": {
  "_target_": "transcriptformer.model.model.Transcriptformer",
  "data_config": {
    "_target_": "transcriptformer.data.dataclasses.DataConfig", "aux_vocab_path": null, "pin_memory": true,
    "aux_cols": "assay", "gene_col_name": "ensembl_id", "clip_counts": null, "filter_to_vocabs": null,
    "filter_outliers": null, "pad_zeros": true, "normalize_to_scale": 0, "n_data_workers": 1, "sort_genes": null,
    "randomize_genes": null, "min_expressed_genes": null, "gene_pad_token": "[PAD]", "aux_pad_token": "unknown",
    "esm2_mappings_path": null},
  "model_config": {
    "_target_": "transcriptformer.data.dataclasses.ModelConfig", "log_counts_eps": 1e-6, "dropout": 0.1,
    "aux_len": 1, "block_len": 128, "activation": "gelu", "mu_link_fn": "softmax"},
  "loss_config": {
    "_target_": "transcriptformer.data.dataclasses.LossConfig", "gene_id_loss_weight": 1.0, "softplus_approx": true}
}}"""


def write_transcriptformer(
    folder: str | Path,
    *,
    n_genes: int = 60,
    n_layers: int = 2,
    n_heads: int = 2,
    embed_dim: int = 16,
    model_dim: int = 24,
    seq_len: int = 20,
    gene_width: int = 12,
    gene_head_dim: int = 10,
    assays: Sequence[str] = ("10x 3' v3", "Smart-seq v4"),
    special_tokens: Sequence[str] = ("unknown", "[PAD]", "[START]", "[END]", "[RD]", "[CELL]", "[MASK]"),
    species: Sequence[str] = ("homo_sapiens",),
    softcap: float = 10,
    attn_bias: bool = False,
    fw_bias: bool = False,
    seed: int = 0,
) -> Path:
    """Write a random TranscriptFormer in the published layout: config, weights, assays, and gene vectors per species.

    Genes are ``ENSG00000000001`` and so on (``ENSMUSG…`` for ``mus_musculus``), in shuffled order. Weights are spread
    widely enough that every part of the network matters, except the biases ``mu.mlp.layers.2.bias`` and
    ``mu.mlp.layers.4.bias``, which a softmax over genes cancels.

    Parameters
    ----------
    folder, seed
        Folder to write; seed.
    n_genes, species
        Number of genes, split among the species; each has one file ``vocabs/<species>_gene.h5``.
    n_layers, n_heads, embed_dim, model_dim, seq_len, gene_width, gene_head_dim
        Sizes: ``model_dim`` is the feed-forward width, ``gene_width`` the length of a gene vector, and
        ``gene_head_dim`` the hidden width of the head that predicts genes.
    assays, special_tokens
        Assays after ``unknown``, whose id is 0; tokens before the genes.
    softcap, attn_bias, fw_bias
        Bound of attention scores, 0 for none; whether linear layers of attention and feed-forward have biases.

    Returns
    -------
    ``folder``.
    """
    import torch

    folder = Path(folder)
    (folder / "vocabs").mkdir(parents=True, exist_ok=True)
    sizes = {"num_layers": n_layers, "num_heads": n_heads, "embed_dim": embed_dim, "model_dim": model_dim}
    sizes |= {"seq_len": seq_len, "gene_head_hidden_dim": gene_head_dim}
    config = json.loads(_CONFIG)
    config["model"]["model_config"] |= sizes | {"softcap": softcap, "attn_bias": attn_bias, "fw_bias": fw_bias}
    data = {"special_tokens": list(special_tokens), "esm2_mappings": [f"{name}_gene.h5" for name in species]}
    config["model"]["data_config"] |= data
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    assay_ids = {name: i for i, name in enumerate(["unknown", *assays])}
    (folder / "vocabs" / "assay_vocab.json").write_text(json.dumps(assay_ids), encoding="utf-8")
    genes = _write_gene_files(folder / "vocabs", species, n_genes, gene_width, seed)
    tensors = _random_tensors(config["model"]["model_config"], len(special_tokens), genes, len(assay_ids), seed)
    torch.save(tensors, folder / "model_weights.pt")
    return folder


def _write_gene_files(folder: Path, species: Sequence[str], n_genes: int, width: int, seed: int) -> NDArray[np.float32]:
    """Write one file per species; returns all vectors in token order."""
    import h5py

    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n_genes, width)).astype(np.float32)
    for name, rows in zip(species, np.array_split(np.arange(n_genes), len(species)), strict=True):
        code = {"homo_sapiens": "", "mus_musculus": "MUS"}.get(name, (name[0] + name.partition("_")[2][:2]).upper())
        keys = [f"ENS{code}G{i + 1:011d}" for i in rng.permutation(len(rows))]
        with h5py.File(folder / f"{name}_gene.h5", "w") as file:
            file["keys"] = np.array(keys, dtype="S")
            for key, row in zip(keys, rows, strict=True):
                file[f"arrays/{key}"] = vectors[row]
    return vectors


def _random_tensors(
    config: Mapping[str, Any], n_specials: int, genes: NDArray[np.float32], n_assays: int, seed: int
) -> dict[str, Tensor]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    embed, wide = config["embed_dim"], config["model_dim"]
    table = torch.cat([torch.rand(n_specials, genes.shape[1], generator=generator), torch.from_numpy(genes)])
    tensors = {_TABLE: table}

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def linear(name: str, n_in: int, n_out: int, bias: bool = True) -> None:
        # 1.5: scores come close to the cap, where it is not linear
        tensors[f"{name}.weight"] = 1.5 / sqrt(n_in) * draw(n_out, n_in)
        tensors.update({f"{name}.bias": 0.2 * draw(n_out)} if bias else {})

    def norm(name: str, width: int) -> None:
        tensors.update({f"{name}.weight": 1 + 0.2 * draw(width), f"{name}.bias": 0.2 * draw(width)})

    def mlp(name: str, n_in: int, n_hidden: int, n_out: int) -> None:
        linear(f"{name}.layers.0", n_in, n_hidden)
        norm(f"{name}.layers.2", n_hidden)
        linear(f"{name}.layers.4", n_hidden, n_out)

    mlp("gene_embeddings.mlp", table.shape[1], embed, embed)
    tensors["aux_embeddings.assay.weight"] = draw(n_assays, embed)
    for layer in (f"transformer_encoder.encoder_layers.{i}" for i in range(config["num_layers"])):
        linear(f"{layer}.linear1", embed, wide, config["fw_bias"])
        linear(f"{layer}.linear2", wide, embed, config["fw_bias"])
        for j in range(4):
            linear(f"{layer}.self_attn.linears.{j}", embed, embed, config["attn_bias"])
        norm(f"{layer}.norm1", embed)
        norm(f"{layer}.norm2", embed)
    tensors["mu.gene_embedding.weight"] = draw(len(table), 1)
    mlp("mu.mlp", 2 * embed, embed // 2, 1)
    mlp("gene_id_head", embed, config["gene_head_hidden_dim"], len(table))
    return tensors


@dataclass(frozen=True)
class TranscriptFormerOracle:
    """A checkpoint in memory.

    ``config`` is ``model`` of the published file, ``tensors`` the published state dict in one dtype, ``vocabulary``
    the token of each special token and gene, ``assays`` the id of each assay.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    vocabulary: Mapping[str, int]
    assays: Mapping[str, int]

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype | None = None) -> TranscriptFormerOracle:
        """Read a folder in the published layout, to compute in ``dtype`` (default: float64)."""
        import h5py
        import torch

        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]
        names = list(config["data_config"]["special_tokens"])
        for file_name in config["data_config"]["esm2_mappings"]:
            with h5py.File(folder / "vocabs" / file_name) as file:
                names += [key.decode() for key in file["keys"]]
        tensors = torch.load(folder / "model_weights.pt", weights_only=True)
        return cls(
            config,
            {name: tensor.to(dtype or torch.float64) for name, tensor in tensors.items()},
            {name: token for token, name in enumerate(dict.fromkeys(names))},
            json.loads((folder / "vocabs" / "assay_vocab.json").read_text(encoding="utf-8")),
        )

    @property
    def seq_len(self) -> int:
        """Most genes of a cell, and the divisor of cell embeddings."""
        return int(self.config["model_config"]["seq_len"])

    def vectors(self, gene_vectors: ArrayLike | None) -> Tensor:
        """The table of gene vectors: the given one, or that of the checkpoint."""
        import torch

        table = self.tensors[_TABLE]
        return table if gene_vectors is None else torch.tensor(np.asarray(gene_vectors), dtype=table.dtype)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """A linear layer, with its bias if there is one."""
        y = x @ self.tensors[f"{name}.weight"].T
        return y + self.tensors[f"{name}.bias"] if f"{name}.bias" in self.tensors else y

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Layer normalisation over the last axis."""
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / ((centred**2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def mlp(self, x: Tensor, name: str) -> Tensor:
        """Linear, ReLU, normalisation, linear."""
        hidden = self.linear(x, f"{name}.layers.0").clamp(min=0)
        return self.linear(self.norm(hidden, f"{name}.layers.2"), f"{name}.layers.4")

    def attention(self, x: Tensor, name: str, key_bias: Tensor, allowed: Tensor) -> Tensor:
        """Attention with a bias per key, and scores capped after it; a row without any allowed key is zero."""
        import torch

        config = self.config["model_config"]
        projected = [self.linear(x, f"{name}.linears.{i}") for i in range(3)]
        q, k, v = (torch.stack(y.chunk(config["num_heads"], dim=-1)) for y in projected)
        scores = q @ k.mT / sqrt(q.shape[-1]) + key_bias
        if config["softcap"]:
            scores = config["softcap"] * (scores / config["softcap"]).tanh()
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1).masked_fill(~allowed, 0)
        return self.linear(torch.cat(list(weights @ v), dim=-1), f"{name}.linears.3")

    def layer(self, x: Tensor, name: str, key_bias: Tensor, allowed: Tensor) -> Tensor:
        """One layer; what is added to are the normalised states."""
        y = self.norm(x, f"{name}.norm1")
        w = self.norm(self.attention(y, f"{name}.self_attn", key_bias, allowed) + y, f"{name}.norm2")
        wide = self.linear(w, f"{name}.linear1")
        return self.linear(wide * 0.5 * (1 + (wide / sqrt(2)).erf()), f"{name}.linear2") + w


class TranscriptFormerScores(NamedTuple):
    """Per kept gene: expected count, and negative log-likelihoods of count (upstream's ``llh`` is the mean) and gene."""

    mu: Tensor
    count_nll: Tensor
    gene_nll: Tensor


def transcriptformer_tokens(
    counts_row: ArrayLike,
    column_tokens: ArrayLike,
    *,
    seq_len: int,
    clip_counts: float = 30,
    normalize_to_scale: float = 0,
    sort: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Tokens and counts of one cell, without padding.

    Parameters
    ----------
    counts_row, column_tokens
        Shape ``(n_vars,)``; token −1 for none.
    seq_len
        Most genes to keep.
    clip_counts
        Upper bound of counts.
    normalize_to_scale
        Sum of the kept counts before clipping; 0 to leave them.
    sort
        Highest counts first, ties by column; else columns in their order.
    """
    row, tokens = np.asarray(counts_row, dtype=np.float32), np.asarray(column_tokens, dtype=np.int64)
    row, tokens = row[tokens >= 0], tokens[tokens >= 0]
    order = np.argsort(-row if sort else row == 0, kind="stable")[:seq_len]
    # with `sort`, zeros come before negative values and count towards `seq_len`
    kept = order[row[order] != 0]
    counts = row[kept].astype(np.float64)
    if normalize_to_scale:
        counts = counts / counts.sum() * normalize_to_scale
    return tokens[kept], counts.clip(0, clip_counts)


def transcriptformer_states(
    model: TranscriptFormerOracle,
    tokens: ArrayLike,
    counts: ArrayLike,
    aux_id: int,
    *,
    gene_vectors: ArrayLike | None = None,
    n_layers: int | None = None,
    read_all: bool = False,
) -> Tensor:
    """Hidden states of one cell: row 0 of ``[START]``, row ``j`` after ``j`` genes.

    Parameters
    ----------
    model
        Checkpoint.
    tokens, counts, aux_id
        From :func:`transcriptformer_tokens`, at most ``seq_len``; id of the assay.
    gene_vectors
        Table that tokens point into, rows of special tokens included; that of the checkpoint if not given.
    n_layers
        How many layers to run; all if not given.
    read_all
        Read the last gene of a full cell, too, which upstream drops.

    Returns
    -------
    Shape ``(min(n_genes + 1, seq_len), embed_dim)``, or ``(n_genes + 1, embed_dim)`` with ``read_all``.
    """
    import torch

    config, table = model.config["model_config"], model.vectors(gene_vectors)
    n_read = len(np.asarray(tokens)) if read_all else min(len(np.asarray(tokens)), model.seq_len - 1)
    read = [model.vocabulary["[START]"], *np.asarray(tokens)[:n_read].tolist()]
    genes = model.mlp(table[read], "gene_embeddings.mlp")
    x = torch.cat([model.tensors["aux_embeddings.assay.weight"][[aux_id]], genes])
    counts_read = torch.tensor([1, 1, *np.asarray(counts)[:n_read].tolist()], dtype=x.dtype)
    key_bias = (counts_read + config["log_counts_eps"]).log1p()
    allowed = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    if aux_id == model.assays[model.config["data_config"]["aux_pad_token"]]:
        allowed[:, 0] = False
    for i in range(config["num_layers"] if n_layers is None else n_layers):
        x = model.layer(x, f"transformer_encoder.encoder_layers.{i}", key_bias, allowed)
    return x[1:]


def transcriptformer_cell(
    model: TranscriptFormerOracle,
    tokens: ArrayLike,
    counts: ArrayLike,
    aux_id: int,
    *,
    gene_vectors: ArrayLike | None = None,
) -> Tensor:
    """Embedding of one cell: the sum of its :func:`transcriptformer_states` over ``seq_len``, however many these are."""
    return transcriptformer_states(model, tokens, counts, aux_id, gene_vectors=gene_vectors).sum(0) / model.seq_len


def transcriptformer_scores(
    model: TranscriptFormerOracle,
    tokens: ArrayLike,
    counts: ArrayLike,
    aux_id: int,
    *,
    clip_counts: float = 30,
    forced_last: bool = True,
    gene_vectors: ArrayLike | None = None,
) -> TranscriptFormerScores:
    """Outputs of the heads for the genes of one cell, each from the state before it.

    Parameters
    ----------
    model, tokens, counts, aux_id, gene_vectors
        As in :func:`transcriptformer_states`.
    clip_counts
        Upper bound of the counts that are scored.
    forced_last
        As upstream: the last gene of a full cell is scored as ``[END]`` with count 1.
    """
    import torch

    genes = torch.tensor(np.asarray(tokens).tolist(), dtype=torch.long)
    states = transcriptformer_states(model, tokens, counts, aux_id, gene_vectors=gene_vectors)[: len(genes)]
    given = torch.tensor(np.asarray(counts).tolist(), dtype=states.dtype)
    embedded = model.mlp(model.vectors(gene_vectors)[genes], "gene_embeddings.mlp")
    logits = model.mlp(torch.cat([states, embedded], dim=-1), "mu.mlp")[:, 0]
    mu = (logits + model.tensors["mu.gene_embedding.weight"][genes, 0]).softmax(0) * given.sum()
    targets, scored = genes.clone(), given.clamp(_LOSS_EPS, clip_counts)
    if forced_last and len(genes) == model.seq_len:
        targets[-1], scored[-1] = model.vocabulary["[END]"], 1
    x = mu + _LOSS_EPS
    if model.config["loss_config"]["softplus_approx"]:
        log_positive = x - (1 + (-x).exp()).log()
    else:
        log_positive = x.expm1().log().where(x <= 5, x)
    count_nll = -scored * x.log() + log_positive.clamp(min=0) + (scored + 1).lgamma()
    gene_logits = model.mlp(states, "gene_id_head")
    if cap := model.config["model_config"]["softcap"]:
        gene_logits = cap * (gene_logits / cap).tanh()
    gene_nll = -gene_logits.log_softmax(-1)[torch.arange(len(genes)), targets]
    return TranscriptFormerScores(mu, count_nll, gene_nll)


def esm2ce_cell(model: TranscriptFormerOracle, tokens: ArrayLike, *, gene_vectors: ArrayLike | None = None) -> Tensor:
    """ESM2-CE embedding of one cell: the sum of the vectors of its genes over ``seq_len``; counts play no part."""
    return model.vectors(gene_vectors)[np.asarray(tokens).tolist()].sum(0) / model.seq_len
