from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from scfm.weights import download as module

from .server import BODY, FileServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited for, which take no time here; no proxy of the machine is asked."""
    found: list[float] = []
    monkeypatch.setattr(module, "sleep", found.append)
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name)
    return found


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        server.files["/file"] = BODY
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models" / "weights.bin"
