"""From token sequences to batches for the network."""

from __future__ import annotations

from scfm.batch.plan import batch_of, plan_batches
from scfm.batch.prefetch import prefetch
from scfm.batch.shuffle import even_batches, runs_of, spans_of

__all__ = ["batch_of", "even_batches", "plan_batches", "prefetch", "runs_of", "spans_of"]
