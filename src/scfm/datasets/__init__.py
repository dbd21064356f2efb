"""Data to try things on, offline."""

from __future__ import annotations

from scfm.datasets._pbmc68k import pbmc68k
from scfm.datasets._synthetic import synthetic

__all__ = ["pbmc68k", "synthetic"]
