"""Contrast of two views of a cell (van den Oord et al. 2018, arXiv:1807.03748; Chen et al. 2020, arXiv:2002.05709)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from scfm._checks import check_least
from scfm.nn import cell_representation
from scfm.train.objective import Objective, Outputs, Term, TrainingBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scfm.model import FoundationModel

__all__ = ["Contrastive", "pairs"]


class Contrastive(Objective):
    """InfoNCE: a view of a cell is told from the other cells of the batch by the other view of the cell.

    With ``zᵢ`` and ``z′ᵢ`` the pooled embeddings of the two views of cell ``i``, projected and scaled to length 1 / √τ,
    the mean over cells of

        −½ log softmax_j( zᵢ · z′ⱼ ) at j = i − ½ log softmax_j( zⱼ · z′ᵢ ) at j = i.

    It is computed in float32. Cells are compared within one batch of one process.

    Parameters
    ----------
    temperature
        τ: the smaller, the more the nearest of the other cells count.
    projection
        Features of a projection ``W₂ relu(W₁ x + b₁) + b₂`` that is trained with the model and then left behind; 0 to
        compare the embeddings themselves.
    negatives
        What a cell is told from: ``"all"`` cells of the batch, or those of the same ``"source"``, among which the source
        itself is no hint.

    Raises
    ------
    ValueError
        If ``temperature`` is not positive, or ``projection`` negative.
    """

    n_views: ClassVar[int] = 2
    changes_views: ClassVar[bool] = True

    def __init__(
        self, temperature: float = 0.1, projection: int = 0, negatives: Literal["all", "source"] = "all"
    ) -> None:
        super().__init__()
        if not temperature > 0:
            msg = f"temperature must be positive, got {temperature}."
            raise ValueError(msg)
        if negatives not in ("all", "source"):
            msg = f"negatives={negatives!r}; cells are told from 'all' others, or from those of the same 'source'."
            raise ValueError(msg)
        check_least("projection", projection, 0)
        self.temperature, self.projection, self.negatives = temperature, projection, negatives
        self.head: nn.Module = nn.Identity()

    def build(self, model: FoundationModel, network: nn.Module, cell_types: Sequence[str] = ()) -> None:
        """Make the projection."""
        d = model.n_features
        if self.projection:
            self.head = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, self.projection))

    def count(self, batch: TrainingBatch) -> int:
        """Cells with two views."""
        return len(pairs(batch)[0])

    def forward(self, outputs: Outputs, batch: TrainingBatch) -> Term:
        """Loss and correct predictions, summed over the cells."""
        first, second = pairs(batch)
        projected = self.head(outputs.pooled)
        one, other = (
            cell_representation(projected[torch.from_numpy(rows)], self.temperature) for rows in (first, second)
        )
        target = torch.arange(len(first), device=one.device)
        with torch.autocast(one.device.type, enabled=False):
            logits = one @ other.T
            if self.negatives == "source":
                if batch.sources is None:
                    msg = "negatives='source' needs the source of each sequence, which this batch lacks; use 'all'."
                    raise ValueError(msg)
                source = torch.from_numpy(batch.sources[first]).to(one.device)
                logits = logits.masked_fill(source[:, None] != source, -torch.inf)
            both = logits, logits.T
            total = sum((F.cross_entropy(scores, target, reduction="sum") for scores in both), logits.new_zeros(())) / 2
        right = sum((scores.detach().argmax(dim=1) == target).sum() for scores in both)
        return Term(total, {"accuracy": torch.as_tensor(right) / 2})

    def state(self) -> dict[str, Any]:
        """Name and arguments."""
        arguments = {name: getattr(self, name) for name in ("temperature", "projection", "negatives")}
        return super().state() | arguments


def pairs(batch: TrainingBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequences that are the first and the second view of each cell that has both."""
    rows, views = batch.batch.rows, batch.batch.tags
    if views is None:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    first, second = (np.flatnonzero(views == view) for view in (0, 1))
    _, at, other = np.intersect1d(rows[first], rows[second], return_indices=True)
    return first[at], second[other]
