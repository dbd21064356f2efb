from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# xdist already fills the cores with processes. These are read when torch is first imported, so torch need not be
# imported here.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# The settings of whoever runs the tests must not change what the tests see.
for name in [name for name in os.environ if name.startswith("SCFM_") and name != "SCFM_SHARED"]:
    del os.environ[name]
os.environ["SCFM_OFFLINE"] = "1"  # only tests with a server of their own go online

collect_ignore = ["example_package"]  # which would register its model for all tests

settings.register_profile("scfm", deadline=None)
settings.register_profile("scfm-ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("scfm-ci" if os.environ.get("CI") else "scfm")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with reference data that is too large for the repository; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("SCFM_SHARED", default))
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}; set SCFM_SHARED to the folder that holds it")
    return path
