"""Heads of TranscriptFormer: the next gene, and its count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from scfm.nn.linear import affine, is_plain
from scfm.nn.state_dict import copy_into
from scfm.nn.transcriptformer import GeneMLP, mlp_targets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scfm.nn.transcriptformer_config import TranscriptFormerConfig

__all__ = ["GeneScores", "TranscriptFormerHeads", "likelihood_targets"]

VOCABULARY_CHUNK = 16_384
TOKEN_CHUNK = 1024
_EXACT_ABOVE = 5.0
"""Rate above which log(exp(x) − 1) is taken as x, as upstream does."""


@dataclass(frozen=True)
class GeneScores:
    """Predictions of each gene from those before it, each float32 of shape ``(n,)``."""

    expected: Tensor
    """Expected count of the gene."""
    count: Tensor
    """Log-likelihood of its count, given that it is expressed (zero-truncated Poisson)."""
    gene: Tensor
    """Log-likelihood of the gene."""


class TranscriptFormerHeads(nn.Module):
    """Count head and gene head.

    Parameters
    ----------
    config
        Sizes.
    """

    def __init__(self, config: TranscriptFormerConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.config = config
        self.count_bias = nn.Embedding(config.vocab_size, 1)
        self.count_mlp = GeneMLP(2 * d, d // 2, 1, config.dropout)
        self.gene_mlp = GeneMLP(d, config.gene_head_size, config.vocab_size, config.dropout)

    def expected_counts(
        self, states: Tensor, genes: Tensor, gene_states: Tensor, counts: Tensor, lengths: list[int]
    ) -> Tensor:
        """Expected count of each gene: a softmax over the genes of its cell, times the sum of their counts.

        Parameters
        ----------
        states
            Hidden state before each gene was read, shape ``(n, d)``.
        genes
            Tokens of the genes, int64, shape ``(n,)``.
        gene_states
            Input states of the genes, shape ``(n, d)``.
        counts
            Counts of the genes, shape ``(n,)``.
        lengths
            Genes of each cell; they sum to ``n``.
        """
        parts = zip(states.split(TOKEN_CHUNK), gene_states.split(TOKEN_CHUNK), strict=True)
        logits = [self.count_mlp(torch.cat(part, dim=1))[:, 0].float() for part in parts]
        logit = torch.cat(logits) + self.count_bias(genes)[:, 0].float()
        cells = zip(logit.split(lengths), counts.float().split(lengths), strict=True)
        return torch.cat([torch.softmax(cell, dim=0) * count.sum() for cell, count in cells])

    def count_log_likelihood(self, expected: Tensor, counts: Tensor, clip: float) -> Tensor:
        """Log-likelihood of counts under a zero-truncated Poisson, as in training; shape ``(n,)``."""
        eps = self.config.log_counts_eps
        counts = counts.float().clamp(eps, clip if clip > 0 else None)
        rate = expected + eps
        if self.config.softplus_approx:
            log_norm = rate - F.softplus(-rate)
        else:
            log_norm = torch.where(rate > _EXACT_ABOVE, rate, torch.log(torch.expm1(rate)))
        return counts * torch.log(rate) - log_norm.clamp(min=0) - torch.lgamma(counts + 1)

    def gene_log_likelihood(self, states: Tensor, genes: Tensor) -> Tensor:
        """Log-probability of each gene, from the hidden state before it was read; shape ``(n,)``.

        Logits are computed in chunks of tokens and of the vocabulary and never kept; a backward pass computes them again. Where something wraps the gene
        head, it is called for whole vocabularies, with fewer tokens at a time.
        """
        down = self.gene_mlp.down
        splits = is_plain(self.gene_mlp, GeneMLP) and is_plain(down) and down.bias is not None
        step, size = self._gene_chunk, TOKEN_CHUNK
        if not splits:
            step = self._gene_tokens
            size = min(TOKEN_CHUNK, max(1, TOKEN_CHUNK * VOCABULARY_CHUNK // self.config.vocab_size))
        if torch.is_grad_enabled():
            step = partial(checkpoint, step, use_reentrant=False)
        parts = zip(states.split(size), genes.split(size), strict=True)
        return torch.cat([step(*part) for part in parts]) if len(states) else states.new_empty(0).float()

    def gene_log_probabilities(self, states: Tensor) -> Tensor:
        """Log-probability of every gene, from the hidden state before it; ``(n, d)`` → ``(n, vocab_size)``, float32."""
        return torch.log_softmax(self._capped(self.gene_mlp(states).float()), dim=1)

    def _gene_tokens(self, states: Tensor, genes: Tensor) -> Tensor:
        logits = self._capped(self.gene_mlp(states).float())
        return logits.gather(1, genes[:, None])[:, 0] - logits.logsumexp(dim=1)

    def _gene_chunk(self, states: Tensor, genes: Tensor) -> Tensor:
        mlp = self.gene_mlp
        hidden = mlp.hidden(states)
        chosen = self._capped((hidden * mlp.down.weight[genes]).sum(dim=1, dtype=torch.float32) + mlp.down.bias[genes])
        total = torch.full_like(chosen, -torch.inf)
        for start in range(0, self.config.vocab_size, VOCABULARY_CHUNK):
            rows = slice(start, start + VOCABULARY_CHUNK)
            logits = self._capped(affine(hidden, mlp.down.weight[rows], mlp.down.bias[rows]).float())
            total = torch.logaddexp(total, torch.logsumexp(logits, dim=1))
        return chosen - total

    def _capped(self, logits: Tensor) -> Tensor:
        cap = float(self.config.softcap)
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights of a published state dict."""
        if self.count_bias.weight.is_meta:
            self.to_empty(device="cpu")
        copy_into(likelihood_targets(self), tensors)


def likelihood_targets(heads: TranscriptFormerHeads) -> dict[str, Tensor]:
    """The parameters of the heads by published name."""
    return {
        "mu.gene_embedding.weight": heads.count_bias.weight.detach(),
        **mlp_targets("mu.mlp", heads.count_mlp),
        **mlp_targets("gene_id_head", heads.gene_mlp),
    }
