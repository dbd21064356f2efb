"""The linear probe of scCello: one linear layer on frozen embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from scfm.annotate._reference import Reference

__all__ = ["LinearProbe", "train_probe"]

# scCello's settings, and the defaults of the transformers Trainer that it uses
DROPOUT = 0.02
INITIAL_STD = 0.02
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-3
WARMUP_STEPS = 500
BATCH_SIZE = 24
N_EPOCHS = 20
MAX_GRADIENT = 1.0
VALIDATION = 0.1


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """One linear layer."""

    weight: NDArray[np.float32]
    """Shape ``(n_labels, d)``."""
    bias: NDArray[np.float32]
    """Shape ``(n_labels,)``."""

    def logits(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Scores of the labels, shape ``(n_cells, n_labels)``, for embeddings of shape ``(n_cells, d)``."""
        return np.asarray(values.astype(np.float32) @ self.weight.T + self.bias)

    def probabilities(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Softmax of :meth:`logits`; rows sum to 1."""
        from scipy.special import softmax

        return np.asarray(softmax(self.logits(values), axis=1), dtype=np.float32)


def train_probe(reference: Reference, *, seed: int = 0) -> LinearProbe:
    """Train a linear layer on frozen embeddings, as scCello's linear probing :cite:p:`Yuan2024`.

    Dropout, then a linear layer; cross-entropy, AdamW with warm-up and linear decay to 0. A tenth of the cells is held
    out, and the weights of the epoch with the best macro F1 on them are kept. Unlike upstream, which leaves dropout on
    in its frozen network, the embeddings are fixed.

    Parameters
    ----------
    reference
        Labelled cells.
    seed
        Seed of the split, the initial weights, the order of the cells and dropout.
    """
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(seed)
    train, held = _split(len(reference.codes), generator)
    values, codes = torch.tensor(reference.values, dtype=torch.float32), torch.tensor(reference.codes)
    weight = torch.empty(len(reference.labels), values.shape[1]).normal_(std=INITIAL_STD, generator=generator)
    bias = torch.zeros(len(reference.labels))
    optimiser, schedule = _optimiser(weight, bias, N_EPOCHS * math.ceil(len(train) / BATCH_SIZE))
    best, probe = -1.0, LinearProbe(weight.detach().numpy().copy(), bias.detach().numpy().copy())
    for _ in range(N_EPOCHS):
        for rows in train[torch.randperm(len(train), generator=generator)].split(BATCH_SIZE):
            kept = torch.rand(len(rows), values.shape[1], generator=generator) >= DROPOUT
            logits = F.linear(values[rows] * kept / (1 - DROPOUT), weight, bias)
            optimiser.zero_grad()
            F.cross_entropy(logits, codes[rows]).backward()
            torch.nn.utils.clip_grad_norm_([weight, bias], MAX_GRADIENT)
            optimiser.step()
            schedule.step()
        now = LinearProbe(weight.detach().numpy().copy(), bias.detach().numpy().copy())
        f1 = _macro_f1(now, reference.values[held], reference.codes[held])
        if f1 > best:
            best, probe = f1, now
    return probe


def _split(n_cells: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells to train on and to validate with; a reference too small to be split serves as both."""
    import torch

    order = torch.randperm(n_cells, generator=generator)
    n_held = round(VALIDATION * n_cells)
    return (order[n_held:], order[:n_held]) if n_held else (order, order)


def _optimiser(
    weight: torch.Tensor, bias: torch.Tensor, n_steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    import torch

    groups = [
        {"params": [weight.requires_grad_()], "weight_decay": WEIGHT_DECAY},
        {"params": [bias.requires_grad_()], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=LEARNING_RATE)

    def rate(step: int) -> float:
        if step < WARMUP_STEPS:
            return step / WARMUP_STEPS
        return max(0, n_steps - step) / max(1, n_steps - WARMUP_STEPS)

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def _macro_f1(probe: LinearProbe, values: NDArray[np.floating], codes: NDArray[np.int64]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(codes, probe.logits(values).argmax(axis=1), average="macro", zero_division=0))
