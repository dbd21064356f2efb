"""Sizes of a TranscriptFormer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from scfm.nn.checks import check_dropout, is_int

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TranscriptFormerConfig"]

_MODEL_KEYS = {
    "hidden_size": "embed_dim",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "intermediate_size": "model_dim",
    "max_genes": "seq_len",
    "gene_head_size": "gene_head_hidden_dim",
}
_OPTIONAL_KEYS = {
    "log_counts_eps": "log_counts_eps",
    "softcap": "softcap",
    "attn_bias": "attn_bias",
    "ffn_bias": "fw_bias",
}
_FIXED = {"activation": "gelu", "mu_link_fn": "softmax", "aux_len": 1}


@dataclass(frozen=True, slots=True)
class TranscriptFormerConfig:
    """Sizes of a TranscriptFormer.

    Raises
    ------
    ValueError
        If a size is not a positive integer, ``hidden_size`` is not an even multiple of ``n_heads``, or a number is
        out of bounds.
    """

    vocab_size: int
    """Rows of the gene table, special tokens included."""
    n_assays: int
    """Rows of the assay table; row 0 is the unknown assay."""
    gene_vector_size: int
    """Features of a protein vector."""
    hidden_size: int
    """Features of a hidden state."""
    n_layers: int
    """Number of layers of the published model."""
    n_heads: int
    """Number of attention heads."""
    intermediate_size: int
    """Width of the feed-forward block."""
    max_genes: int
    """Largest number of genes of a cell, and the divisor of cell embeddings (``seq_len``)."""
    gene_head_size: int
    """Width of the hidden layer of the gene head."""
    log_counts_eps: float = 1e-6
    """Added to a count before its logarithm."""
    softcap: float = 10.0
    """Bound of attention scores and gene logits; 0 for no bound."""
    attn_bias: bool = False
    """Whether the attention projections have biases."""
    ffn_bias: bool = False
    """Whether the feed-forward block has biases."""
    softplus_approx: bool = True
    """Whether the zero-truncated likelihood uses softplus(−x) for log(1 − exp(−x)), as in training."""
    dropout: float = 0.0
    """Dropout probability in training, before the last linear layer of each feed-forward block and MLP; not read from a
    published config."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_assays", "gene_vector_size", *_MODEL_KEYS):
            value: object = getattr(self, name)
            if not is_int(value) or value < 1:
                msg = f"{_MODEL_KEYS.get(name, name)} must be a positive integer, got {value!r}."
                raise ValueError(msg)
        if self.hidden_size % self.n_heads or self.hidden_size % 2:
            msg = f"embed_dim {self.hidden_size} must be even and a multiple of num_heads {self.n_heads}."
            raise ValueError(msg)
        for name, upper in (("log_counts_eps", 1.0), ("softcap", 1e6)):
            number: object = getattr(self, name)
            if not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= number < upper:
                msg = f"{name} must be a number from 0 to below {upper:g}, got {number!r}."
                raise ValueError(msg)
        for name in ("attn_bias", "ffn_bias", "softplus_approx"):
            flag: object = getattr(self, name)
            if not isinstance(flag, bool):
                msg = f"{_OPTIONAL_KEYS.get(name, name)} must be true or false, got {flag!r}."
                raise ValueError(msg)
        check_dropout(self.dropout)

    def architecture(self) -> dict[str, Any]:
        """Sizes for a model card, without dropout."""
        return {name: value for name, value in asdict(self).items() if name != "dropout"}

    @classmethod
    def from_dict(
        cls, config: Mapping[str, Any], *, vocab_size: int, n_assays: int, gene_vector_size: int
    ) -> TranscriptFormerConfig:
        """Read a published ``config.json``; keys that do not shape the network are ignored.

        Parameters
        ----------
        config
            Content of the file: ``{"model": {"model_config": …, "loss_config": …}}``.
        vocab_size, n_assays, gene_vector_size
            Sizes that the file does not hold.

        Raises
        ------
        ValueError
            If a section or key is missing or out of bounds, or the network differs from all published ones.
        """
        model = config.get("model")
        sizes = model.get("model_config") if isinstance(model, dict) else None
        if not isinstance(model, dict) or not isinstance(sizes, dict):
            msg = "The model config lacks the section model.model_config."
            raise ValueError(msg)
        missing = [key for key in _MODEL_KEYS.values() if key not in sizes]
        if missing:
            msg = f"The model config lacks {', '.join(missing)}."
            raise ValueError(msg)
        for key, value in _FIXED.items():
            if sizes.get(key, value) != value:
                msg = f"{key} must be {value!r}, as in all published models; got {sizes[key]!r}."
                raise ValueError(msg)
        given = {name: sizes[key] for name, key in (_MODEL_KEYS | _OPTIONAL_KEYS).items() if key in sizes}
        loss = model.get("loss_config")
        if isinstance(loss, dict) and "softplus_approx" in loss:
            given["softplus_approx"] = loss["softplus_approx"]
        return cls(vocab_size=vocab_size, n_assays=n_assays, gene_vector_size=gene_vector_size, **given)
