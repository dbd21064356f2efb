"""Pretraining and fine-tuning, with the extra ``scfm-tools[train]``."""

from __future__ import annotations
