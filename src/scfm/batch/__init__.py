"""From token sequences to batches for the network."""

from __future__ import annotations

from scfm.batch.plan import make_batch, plan_batches
from scfm.batch.prefetch import prefetch
from scfm.batch.shuffle import fixed_size_batches, row_ranges

__all__ = ["make_batch", "fixed_size_batches", "plan_batches", "prefetch", "row_ranges"]
