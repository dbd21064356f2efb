from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from .layout import write_layouts

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture(scope="session", params=["committed", "full"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of upstream's values: those of the repository, and, where they are at hand, all of them."""
    if request.param == "full":
        full: Path = request.getfixturevalue("shared") / "reference"
        if not full.is_dir():
            pytest.skip(f"no reference data at {full}")
        return full
    return write_layouts(DATA, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost small matrices a hundred times what they save where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
