from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

import scfm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def settings_of_the_session(tmp_path: Path) -> Iterator[None]:
    """Commands set the verbosity, and look into the cache; take that back."""
    logger = logging.getLogger("scfm")
    handlers = list(logger.handlers)
    scfm.settings.cache_dir = tmp_path / "cache"
    yield
    scfm.settings.reset()
    logger.handlers[:] = handlers
