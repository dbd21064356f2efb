"""Run a network over a source of cells."""

from __future__ import annotations

from scfm.run.engine import RunPlan, RunStats, Sink, run
from scfm.run.sinks import ArraySink, GeneMeansSink

__all__ = ["ArraySink", "GeneMeansSink", "RunPlan", "RunStats", "Sink", "run"]
