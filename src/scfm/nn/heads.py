"""Language-model head of a BERT."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scfm.nn.bert import init_weights
from scfm.nn.published import bias_name, check_names, check_tied
from scfm.nn.state_dict import copy_into, weight_and_bias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scfm.nn.bert_config import BertConfig

__all__ = ["MaskedLMHead", "head_targets"]


class MaskedLMHead(nn.Module):
    """Masked-language-model head: ``LayerNorm(act(dense(x))) · word_embeddingsᵀ + bias``.

    The output weights are the word embeddings of the encoder, passed at each call.

    Parameters
    ----------
    config
        Sizes.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(init_weights)

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        """Logits of all tokens of the vocabulary.

        Parameters
        ----------
        hidden
            Hidden states of the last layer, shape ``(..., d)``; pass only the tokens whose scores are read.
        word_embeddings
            Word embeddings of the encoder, shape ``(vocab_size, d)``.

        Returns
        -------
        Logits, shape ``(..., vocab_size)``.
        """
        return F.linear(self.queries(hidden), word_embeddings, self.bias)

    def queries(self, hidden: Tensor) -> Tensor:
        """``LayerNorm(act(dense(x)))``, which is compared with the word embeddings; shape of ``hidden``."""
        x = self.dense(hidden)
        return cast("Tensor", self.norm(F.relu(x) if self.config.hidden_act == "relu" else F.gelu(x)))

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the head of a published ``BertForMaskedLM`` state dict.

        Parameters
        ----------
        tensors
            Tensors by published name; only those of the head are looked up.

        Raises
        ------
        ValueError
            If names are missing or unexpected, a tensor has another shape, or the output weights are not the word
            embeddings; the weights are then undefined.
        """
        check_names(tensors, self.config, head=True)
        check_tied(tensors)
        if self.bias.is_meta:
            self.to_empty(device="cpu")
        copy_into(head_targets(self), tensors)
        copy_into({bias_name(tensors): self.bias}, tensors)


def head_targets(head: MaskedLMHead) -> dict[str, Tensor]:
    """The parameters of a language-model head by published name, the bias excepted."""
    return {
        **weight_and_bias("cls.predictions.transform.dense", head.dense),
        **weight_and_bias("cls.predictions.transform.LayerNorm", head.norm),
    }
