"""From token sequences to batches for the network."""

from __future__ import annotations

from scfm.batch.plan import plan_batches
from scfm.batch.prefetch import prefetch

__all__ = ["plan_batches", "prefetch"]
