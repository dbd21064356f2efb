"""Run a network over a source of counts."""

from __future__ import annotations

from scfm.run.engine import RunPlan, RunStats, run
from scfm.run.sink import ArraySink, GeneMeansSink, Sink

__all__ = ["ArraySink", "GeneMeansSink", "RunPlan", "RunStats", "Sink", "run"]
