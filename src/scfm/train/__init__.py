"""Pretraining and fine-tuning, with the extra ``scfm-tools[train]``."""

from __future__ import annotations

from scfm.train._pretrain import pretrain
from scfm.train.adapters import LoRA
from scfm.train.projection import LinearProjection, linear_projection

__all__ = ["LinearProjection", "LoRA", "linear_projection", "pretrain"]
