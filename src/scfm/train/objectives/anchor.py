"""Keep the embeddings that training started from."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from scfm.train.objective import IGNORED, Objective, Outputs, Term, TrainingBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scfm.model import FoundationModel

__all__ = ["Anchor"]


class Anchor(Objective):
    """Distance of the embedding of a cell from the one that the network gave it when training started.

    The mean over sequences of ``1 − cos(z, z₀)``, with ``z`` the pooled embedding and ``z₀`` that of the first weights, of
    which a copy is kept, for the same sequence without masks. Other losses then change what tokens hold, and less what a
    cell is embedded as: for a start that is good already, as one from a projection or from another model.
    """

    def build(self, model: FoundationModel, network: nn.Module, cell_types: Sequence[str] = ()) -> None:
        """Copy the network."""
        self.start = deepcopy(network).requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Switch what is trained; the copy stays as it computes embeddings, without dropout."""
        super().train(mode)
        if hasattr(self, "start"):
            self.start.eval()
        return self

    def count(self, batch: TrainingBatch) -> int:
        """Sequences."""
        return len(batch.batch.lengths)

    def forward(self, outputs: Outputs, batch: TrainingBatch) -> Term:
        """Distance, summed over the sequences."""
        assert outputs.embed is not None
        tokens = np.where(batch.targets == IGNORED, batch.batch.tokens, batch.targets)
        with torch.no_grad():
            wanted = outputs.embed(self.start, replace(batch.batch, tokens=tokens))
        return Term((1 - F.cosine_similarity(outputs.pooled.float(), wanted.float())).sum(), {})
