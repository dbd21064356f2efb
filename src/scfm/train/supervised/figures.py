"""Figures by which a model is judged while it is trained, from sums that batches and processes add up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scfm._text import some
from scfm.train.supervised.targets import Classes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scfm.train.supervised.targets import Target

__all__ = ["check_monitor", "figures", "judged", "none_judged"]


def check_monitor(monitor: str, targets: Mapping[str, Target]) -> None:
    """A ValueError unless a figure of this name is computed for the targets; the message lists those that are."""
    known = ["validation_loss"]
    for name, target in targets.items():
        prefix = f"validation_{name}_" if len(targets) > 1 else "validation_"
        own = ("accuracy", "macro_f1") if isinstance(target, Classes) else ("r2", "pearson")
        known += [prefix + figure for figure in (*(("loss",) if len(targets) > 1 else ()), *own)]
    if monitor not in known:
        msg = f"monitor={monitor!r} is not known; there are {some(map(repr, known), len(known))}."
        raise ValueError(msg)


def none_judged(target: Target) -> Tensor:
    """Sums of :func:`judged` of no cell at all, as a process has it that no cell is left for."""
    return torch.zeros(2 + target.n_outputs**2 if isinstance(target, Classes) else 9, dtype=torch.float64)


def judged(target: Target, scores: Tensor, values: Tensor) -> Tensor:
    """Sums of a batch: loss and what it is divided by; then the confusion of classes, or moments of numbers."""
    base = torch.stack([target.loss(scores, values).detach(), target.count(values)]).double()
    if isinstance(target, Classes):
        n, known = target.n_outputs, values >= 0
        pairs = values[known] * n + scores[known].argmax(dim=1)
        return torch.cat([base, torch.bincount(pairs, minlength=n * n).double()])
    # of standardised numbers, which have the same R² and correlation
    known = values.isfinite()
    true, found = values[known].double(), scores[known, 0].double()
    moments = [true.sum(), found.sum(), true.square().sum(), found.square().sum(), (true * found).sum()]
    return torch.cat([base, torch.stack(moments), (true - found).square().sum()[None], known.sum()[None].double()])


def figures(target: Target, sums: Tensor) -> dict[str, float]:
    """Loss, and accuracy and macro F1 of classes, or R² and Pearson's correlation of numbers."""
    loss = float(sums[0] / sums[1].clamp(min=1e-12))
    if isinstance(target, Classes):
        confusion = sums[2:].reshape(target.n_outputs, target.n_outputs)
        right, true, found = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
        there = true + found > 0
        f1 = (2 * right[there] / (true + found)[there]).mean()
        return {"loss": loss, "accuracy": float(right.sum() / true.sum().clamp(min=1)), "macro_f1": float(f1)}
    x, y, xx, yy, xy, errors, n = sums[2:].tolist()
    n = max(n, 1)
    spread, other = xx - x * x / n, yy - y * y / n
    together = xy - x * y / n
    r = together / (spread * other) ** 0.5 if spread > 0 and other > 0 else 0.0
    return {"loss": loss, "r2": 1 - errors / spread if spread > 0 else 0.0, "pearson": r}
