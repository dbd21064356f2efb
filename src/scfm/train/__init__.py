"""Pretraining and fine-tuning, with the extra ``scfm-tools[train]``."""

from __future__ import annotations

from scfm.train._pretrain import pretrain

__all__ = ["pretrain"]
