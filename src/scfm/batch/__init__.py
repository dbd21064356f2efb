"""From token sequences to batches for the network."""

from __future__ import annotations

from scfm.batch.plan import make_batch, plan_batches
from scfm.batch.prefetch import prefetch
from scfm.batch.shuffle import fixed_size_batches, ranges_of, row_ranges

__all__ = ["fixed_size_batches", "make_batch", "plan_batches", "prefetch", "ranges_of", "row_ranges"]
