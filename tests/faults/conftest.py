from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from .faulty import write_sources

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def folder_of(sources: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copy one of the sources, to be damaged."""
    return lambda kind: shutil.copytree(sources[kind], tmp_path / "model")
