"""Sizes of a BERT encoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from scfm.nn.checks import check_dropout, is_int

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Activation", "BertConfig"]

Activation = Literal["relu", "gelu"]

_HF_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
}


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Sizes of a BERT encoder.

    Raises
    ------
    ValueError
        If a size is not a positive integer, ``hidden_size`` is not a multiple of ``n_heads``, ``layer_norm_eps`` is
        not positive, the activation is unknown, ``pad_token_id`` is not in the vocabulary, or ``dropout`` is not in
        [0, 1).
    """

    vocab_size: int
    """Number of tokens, special tokens included."""
    hidden_size: int
    """Features of a hidden state."""
    n_layers: int
    """Number of encoder layers of the published model."""
    n_heads: int
    """Number of attention heads."""
    intermediate_size: int
    """Width of the feed-forward block."""
    max_positions: int
    """Largest number of tokens of a cell."""
    type_vocab_size: int = 2
    """Rows of the token type table; only row 0 is used."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in every layer norm."""
    hidden_act: Activation = "relu"
    """Activation of the feed-forward block and of the language-model head; ``"gelu"`` is the exact one (erf)."""
    pad_token_id: int = 0
    """Padding token of upstream; packed cells have no padding."""
    dropout: float = 0.0
    """Dropout probability in training: of the embeddings after their norm, the attention weights, and the outputs of
    attention and feed-forward blocks. Upstream's ``hidden_dropout_prob`` and ``attention_probs_dropout_prob``, which are
    equal in all published models; not read from a published config."""

    def __post_init__(self) -> None:
        for name in (*_HF_KEYS, "type_vocab_size"):
            value: object = getattr(self, name)
            if not is_int(value) or value < 1:
                msg = f"{_HF_KEYS.get(name, name)} must be a positive integer, got {value!r}."
                raise ValueError(msg)
        if self.hidden_size % self.n_heads:
            msg = f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.n_heads}."
            raise ValueError(msg)
        eps: object = self.layer_norm_eps  # from a file, so of any type
        if not isinstance(eps, float) or not 0 < eps < 1:
            msg = f"layer_norm_eps must be a number between 0 and 1, got {eps!r}."
            raise ValueError(msg)
        if self.hidden_act not in ("relu", "gelu"):
            msg = f"hidden_act must be 'relu' or 'gelu', got {self.hidden_act!r}."
            raise ValueError(msg)
        pad: object = self.pad_token_id
        if not is_int(pad) or not 0 <= pad < self.vocab_size:
            msg = f"pad_token_id must be an integer from 0 to {self.vocab_size - 1}, got {pad!r}."
            raise ValueError(msg)
        check_dropout(self.dropout)

    def architecture(self) -> dict[str, Any]:
        """Sizes for a model card, without dropout."""
        return {name: value for name, value in asdict(self).items() if name != "dropout"}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read the ``config.json`` of a published model; keys that do not shape the encoder are ignored.

        Parameters
        ----------
        config
            Content of a Hugging Face ``config.json`` of a BERT model.

        Raises
        ------
        ValueError
            If a key is missing, a value is out of bounds, or the positions are not absolute.
        """
        missing = [key for key in _HF_KEYS.values() if key not in config]
        if missing:
            msg = f"The model config lacks {', '.join(missing)}."
            raise ValueError(msg)
        positions = config.get("position_embedding_type", "absolute")
        if positions != "absolute":
            msg = f"position_embedding_type must be 'absolute', got {positions!r}."
            raise ValueError(msg)
        optional = ("type_vocab_size", "layer_norm_eps", "hidden_act", "pad_token_id")
        given = {key: config[key] for key in optional if key in config}
        return cls(**{name: config[key] for name, key in _HF_KEYS.items()}, **{"hidden_act": "gelu", **given})
