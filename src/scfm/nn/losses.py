"""Losses of scCello's pretraining (Yuan et al. 2024, arXiv:2408.12373), which adds them up without weights.

Throughout, ``n(v) = v / ‖v‖ / √τ``, so that the inner product of two such vectors is their cosine over the
temperature ``τ``. Everything is computed in float32 (float64 for float64 input), also under autocast, because bfloat16
has no decimals at logits of ``1 / τ = 100``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from scfm.nn.bert import init_weights
from scfm.nn.linear import is_plain

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CellTypeCoherenceLoss",
    "LossAndAccuracy",
    "MaskedGeneLoss",
    "OntologyAlignmentLoss",
    "RegularisationLoss",
    "cell_representation",
    "summed_cross_entropy",
]

IGNORED = -100
"""Label of a token that is not predicted."""
ROWS = 1024
"""Number of masked tokens whose logits exist at once: 100 MB for 25,000 genes."""


class LossAndAccuracy(NamedTuple):
    """Loss and accuracy of a classification."""

    loss: Tensor
    """Mean cross-entropy in nats, a scalar."""
    accuracy: Tensor
    """Share of correct predictions, a scalar without gradient; NaN if nothing is predicted."""


def summed_cross_entropy(
    queries: Tensor, labels: Tensor, table: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of many classes, whose logits never exist at once.

    Logits are computed in chunks and recomputed in the backward pass, so memory does not grow with the batch. The
    logarithm is taken in float32, also under autocast.

    Parameters
    ----------
    queries
        What is classified, shape ``(n, d)``.
    labels
        Class of each, int64, shape ``(n,)``.
    table, bias
        Weights and bias of the classes, shapes ``(n_classes, d)`` and ``(n_classes,)``.

    Returns
    -------
    total
        Sum of ``−log softmax(queries · tableᵀ + bias)`` at the labels, a scalar.
    right
        Number of correct predictions, a scalar without gradient.
    """
    chunks = list(zip(queries.split(ROWS), labels.split(ROWS), strict=True))
    if len(chunks) <= 1:
        return _summed(queries, labels, table, bias)
    parts = [
        checkpoint(_summed, *chunk, table, bias, use_reentrant=False, preserve_rng_state=False) for chunk in chunks
    ]
    losses, right = zip(*parts, strict=True)
    return torch.stack(losses).sum(), torch.stack(right).sum()


def _summed(queries: Tensor, labels: Tensor, table: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    logits = _precise(F.linear(queries, table, bias))
    return F.cross_entropy(logits, labels, reduction="sum"), (logits.detach().argmax(dim=1) == labels).sum()


def cell_representation(projected: Tensor, tau: float) -> Tensor:
    """Vectors of length 1 / √τ: the ``z`` of the losses.

    Parameters
    ----------
    projected
        Projections of the hidden states of ``<cls>``, shape ``(..., d)``.
    tau
        Temperature.

    Returns
    -------
    ``projected / ‖projected‖ / √tau``, shape ``(..., d)``, float32, or float64 for float64 input.

    Examples
    --------
    >>> import torch
    >>> cell_representation(torch.tensor([[3.0, 4.0]]), tau=0.25)
    tensor([[1.2000, 1.6000]])
    """
    return F.normalize(_precise(projected), dim=-1) / tau**0.5


class MaskedGeneLoss(nn.Module):
    """Masked gene prediction: which gene was masked.

    With ``h_t`` the projected hidden state of a masked token and ``E_v`` the projected word embedding of gene ``v``,
    the mean over the masked tokens of

        −log softmax_v( n(h_t) · n(E_v) ) at the gene of the token.

    Logits are computed in chunks and recomputed in the backward pass, so memory does not grow with the batch.

    Parameters
    ----------
    tau
        Temperature.

    Examples
    --------
    >>> import torch
    >>> hidden, table = torch.eye(4)[:3], torch.eye(4)
    >>> loss, accuracy = MaskedGeneLoss(tau=0.1)(hidden, torch.tensor([0, -100, 3]), table, torch.nn.Identity())
    >>> round(loss.item(), 3), accuracy.item()
    (5.0, 0.5)
    """

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = _temperature(tau)

    def forward(
        self, hidden: Tensor, labels: Tensor, word_embeddings: Tensor, head: Callable[[Tensor], Tensor]
    ) -> LossAndAccuracy:
        """Loss and accuracy of a batch.

        Parameters
        ----------
        hidden
            Hidden states of the last layer, shape ``(..., d)``.
        labels
            Original token, −100 where nothing is predicted; int64, shape of ``hidden`` without its last axis.
        word_embeddings
            Word embeddings of all tokens, special tokens included, shape ``(vocab_size, d)``.
        head
            Projection that both the hidden states (of masked tokens only) and the word embeddings go through, for
            example ``ScCelloNetwork.gene_head``.

        Returns
        -------
        Loss and accuracy; the loss is 0 if no token is masked.

        Raises
        ------
        ValueError
            If the shapes do not fit.
        """
        if labels.shape != hidden.shape[:-1]:
            msg = f"labels have shape {tuple(labels.shape)}, hidden states {tuple(hidden.shape)}."
            raise ValueError(msg)
        masked = labels != IGNORED
        labels = labels[masked]
        queries = cell_representation(head(hidden[masked]), self.tau)
        genes = cell_representation(head(word_embeddings), self.tau)
        with _no_autocast(hidden):
            total, right = summed_cross_entropy(queries, labels, genes)
        return LossAndAccuracy(total / max(1, len(labels)), right / len(labels))


class CellTypeCoherenceLoss(nn.Module):
    """Intra loss: cells lie at the prototype of their cell type.

    With ``p_k = n(prototype k)`` and ``c_i`` the type of cell ``i``, the mean over cells of

        −log softmax_k( z_i · p_k ) at k = c_i.

    Parameters
    ----------
    n_types
        Number of cell types.
    hidden_size
        Features of a cell representation.
    tau
        Temperature.

    Attributes
    ----------
    prototypes
        Learned embedding of each cell type, shape ``(n_types, hidden_size)``; drawn from a normal of 0.02.
    """

    def __init__(self, n_types: int, hidden_size: int, tau: float) -> None:
        super().__init__()
        self.tau = _temperature(tau)
        self.prototypes = nn.Embedding(n_types, hidden_size)
        init_weights(self.prototypes)

    def representations(self, cell_types: Tensor | None = None) -> Tensor:
        """``p_k`` of some cell types, by default of all, shape ``(n, hidden_size)``."""
        rows = self.prototypes.weight if cell_types is None else self.prototypes(cell_types)
        return cell_representation(rows, self.tau)

    def forward(self, z: Tensor, cell_types: Tensor) -> LossAndAccuracy:
        """Loss and accuracy of a batch.

        Parameters
        ----------
        z
            Cell representations (:func:`cell_representation`), shape ``(n_cells, hidden_size)``.
        cell_types
            Type of each cell, 0 to ``n_types − 1``, int64, shape ``(n_cells,)``.
        """
        with _no_autocast(z):
            logits = _precise(z) @ self.representations().T
            loss = F.cross_entropy(logits, cell_types)
        return LossAndAccuracy(loss, (logits.detach().argmax(dim=1) == cell_types).float().mean())


class RegularisationLoss(nn.Module):
    """Keeps prototypes near the cells: the mean square of ``A p_c + b − z`` over cells and features.

    Parameters
    ----------
    hidden_size
        Features of a cell representation.

    Attributes
    ----------
    affine
        The learned map ``A, b``.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.affine = nn.Linear(hidden_size, hidden_size)
        init_weights(self.affine)

    def forward(self, z: Tensor, prototypes: Tensor) -> Tensor:
        """Loss of a batch, a scalar.

        Parameters
        ----------
        z
            Cell representations, shape ``(n_cells, hidden_size)``.
        prototypes
            ``p_c`` of the type of each cell (:meth:`CellTypeCoherenceLoss.representations`), of the same shape.
        """
        with _no_autocast(z):
            return F.mse_loss(self._mapped(_precise(prototypes)), _precise(z))

    def _mapped(self, prototypes: Tensor) -> Tensor:
        if not is_plain(self.affine):
            return _precise(self.affine(prototypes))
        return F.linear(prototypes, _precise(self.affine.weight), _precise(self.affine.bias))


class OntologyAlignmentLoss(nn.Module):
    """Inter loss: cells of types that are close in the ontology lie closer than cells of distant types.

    With ``S_ij = z_i · z_j`` off the diagonal and ``S_ii = z_i · z_i′``, ``z′`` from a second pass with another dropout
    mask, and each value ``s`` but the lowest of the similarities of the type of cell ``i`` to those of the batch,

        P = {j : sim(c_i, c_j) ≥ s},    N = {k : sim(c_i, c_k) < s and c_k is no ancestor of c_i},

    the mean over all ``(i, s, j ∈ P)`` of ``−log( e^{S_ij} / (e^{S_ij} + Σ_{k ∈ N} e^{S_ik}) )``, within a batch.

    Parameters
    ----------
    similarity
        Levels of similarity between cell types, integers, shape ``(n_types, n_types)``.
    ancestors
        1 (or True) at ``[i, j]`` where type ``j`` is an ancestor of type ``i``, or ``i`` itself; same shape.

    Raises
    ------
    ValueError
        If the two are not square and of the same shape.

    Examples
    --------
    Two cells of one type and one of another; the first is nearer to the third.

    >>> import torch
    >>> loss = OntologyAlignmentLoss(torch.tensor([[9, 1], [1, 9]]), torch.eye(2, dtype=torch.int))
    >>> z = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    >>> round(loss(z, z, torch.tensor([0, 0, 1])).item(), 3)
    1.225
    """

    similarity: Tensor
    ancestors: Tensor

    def __init__(self, similarity: Tensor, ancestors: Tensor) -> None:
        super().__init__()
        if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or ancestors.shape != similarity.shape:
            msg = (
                f"similarity has shape {tuple(similarity.shape)} and ancestors {tuple(ancestors.shape)}; "
                "both must be (n_types, n_types)."
            )
            raise ValueError(msg)
        # not learned, so not in the state dict
        self.register_buffer("similarity", similarity, persistent=False)
        self.register_buffer("ancestors", ancestors.bool(), persistent=False)

    def forward(self, z: Tensor, z_prime: Tensor, cell_types: Tensor) -> Tensor:
        """Loss of a batch, a scalar; 0 if all cells are of one type. Memory grows with levels × cells².

        Parameters
        ----------
        z, z_prime
            Cell representations (:func:`cell_representation`) of two passes, shape ``(n_cells, d)``.
        cell_types
            Type of each cell, int64, shape ``(n_cells,)``.

        Raises
        ------
        ValueError
            If the shapes do not fit.
        """
        if z.shape != z_prime.shape or cell_types.shape != z.shape[:1]:
            shapes = [tuple(tensor.shape) for tensor in (z, z_prime, cell_types)]
            msg = f"z, z_prime and cell_types have shapes {shapes[0]}, {shapes[1]} and {shapes[2]}."
            raise ValueError(msg)
        pairs = cell_types[:, None], cell_types
        similarity, unrelated = self.similarity[pairs], ~self.ancestors[pairs]
        ascending = similarity.sort(dim=1).values
        anchor, step = (ascending[:, 1:] > ascending[:, :-1]).nonzero(as_tuple=True)
        level = ascending[anchor, step + 1]
        below = similarity[anchor] < level[:, None]  # (anchor and level, other cell), as all that follows
        with _no_autocast(z):
            z, z_prime = _precise(z), _precise(z_prime)
            scores = (z @ z.T).diagonal_scatter((z * z_prime).sum(dim=1)).index_select(0, anchor)
            # the lowest number instead of −∞: without any negative, the gradient of the log-sum-exp of −∞ is NaN
            negatives = torch.where(below & unrelated[anchor], scores, torch.finfo(scores.dtype).min)
            terms = F.logsigmoid(scores - negatives.logsumexp(dim=1, keepdim=True))
            return -terms.masked_fill(below, 0).sum() / (~below).sum().clamp(min=1)


def _temperature(tau: float) -> float:
    if not tau > 0:
        msg = f"tau must be positive, got {tau}."
        raise ValueError(msg)
    return tau


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _no_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)
