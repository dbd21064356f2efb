from __future__ import annotations

from pathlib import Path

import pytest

from .layout import write_layouts

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
