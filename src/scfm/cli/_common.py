"""What commands share."""

from __future__ import annotations

import os

from scfm._settings import settings

__all__ = ["log_progress"]


def log_progress() -> None:
    """Say on stderr what is done, unless the environment asks for less or more."""
    settings.verbosity = settings.verbosity if "SCFM_VERBOSITY" in os.environ else "info"
