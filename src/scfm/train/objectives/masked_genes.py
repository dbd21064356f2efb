"""Masked genes (Devlin et al. 2019, doi:10.18653/v1/N19-1423), as Geneformer was trained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from scfm._checks import check_least
from scfm.nn import BertEncoder, MaskedLMHead, head_targets, summed_cross_entropy
from scfm.train.objective import IGNORED, Objective, Outputs, Term, TrainingBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scfm.model import FoundationModel

__all__ = ["MaskedGenes", "bert_of"]

BIAS = "cls.predictions.bias"


class MaskedGenes(Objective):
    """Which gene was masked: mean over the masked genes of ``−log softmax_v(q · E_v + b_v)`` at the gene.

    ``q = LayerNorm(act(W h + c))`` with the last hidden state ``h``, and ``E`` the word embeddings of the network: the
    head and the loss of ``transformers.BertForMaskedLM``. Logits are computed for masked tokens only, in chunks.

    Parameters
    ----------
    candidates
        Genes that a masked gene is told from in a step: those that are masked in the batch and so many others, drawn
        anew each time. Their logits are raised by log((V − m) / candidates), with V tokens of which m are masked in the
        batch, so that the sum of their exponentials is that of all on average (Jean et al. 2015,
        doi:10.3115/v1/P15-1001). The head then costs less. ``None``: all, which is exact; validation always is.

    Raises
    ------
    ValueError
        If ``candidates`` is less than 1.
    """

    masks: ClassVar[bool] = True

    def __init__(self, candidates: int | None = None) -> None:
        super().__init__()
        if candidates is not None:
            check_least("candidates", candidates)
        self.candidates = candidates
        self.head: MaskedLMHead

    def build(self, model: FoundationModel, network: nn.Module, cell_types: Sequence[str] = ()) -> None:
        """Make the head, with the weights of ``model`` where it has one.

        Raises
        ------
        TypeError
            If the network is no BERT.
        """
        self.head = MaskedLMHead(bert_of(network, "masked_genes").config)
        if any(name.startswith("cls.predictions.transform.") for name in model.tensors):
            self.head.load_published(model.tensors)

    def count(self, batch: TrainingBatch) -> int:
        """Masked genes."""
        return int((batch.targets != IGNORED).sum())

    def forward(self, outputs: Outputs, batch: TrainingBatch) -> Term:
        """Cross-entropy and correct predictions, summed over the masked genes."""
        words = bert_of(outputs.network, "masked_genes").word_embeddings.weight
        targets = torch.from_numpy(batch.targets).to(outputs.hidden.device)
        masked = targets != IGNORED
        table, bias, targets = self._candidates(words, targets[masked])
        total, right = summed_cross_entropy(self.head.queries(outputs.hidden[masked]), targets, table, bias)
        return Term(total, {"accuracy": right})

    def _candidates(self, words: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors and biases of the tokens that are told apart, and the targets among them."""
        own, targets_among = torch.unique(targets, return_inverse=True)
        n_other = len(words) - len(own)
        if self.candidates is None or not self.training or self.candidates >= n_other:
            return words, self.head.bias, targets
        is_other = torch.ones(len(words), dtype=torch.bool, device=words.device)
        is_other[own] = False
        drawn = torch.randperm(n_other, device="cpu")[: self.candidates].to(words.device)
        tokens = torch.cat([own, is_other.nonzero()[:, 0][drawn]])
        raised = torch.zeros(len(tokens), dtype=self.head.bias.dtype, device=words.device)
        raised[len(own) :] = math.log(n_other / self.candidates)
        return words[tokens], self.head.bias[tokens] + raised, targets_among

    def published_tensors(self) -> dict[str, Tensor]:
        """The head of a published ``BertForMaskedLM``."""
        return {**head_targets(self.head), BIAS: self.head.bias.detach()}

    def state(self) -> dict[str, Any]:
        """Name and arguments."""
        return super().state() | {"candidates": self.candidates}


def bert_of(network: nn.Module, objective: str) -> BertEncoder:
    """The network, if it is a BERT; a TypeError otherwise."""
    if not isinstance(network, BertEncoder):
        msg = f"The objective {objective} is for models that read ranked genes with a BERT; the network is a {type(network).__name__}."
        raise TypeError(msg)
    return network
