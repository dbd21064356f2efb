"""What the tests do where a package is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = """
[dependency-groups]
test = ["missing-package>=1.2", "other[missing_extra]"]
"""
MODULES = {
    "test_module": "import pytest\npytest.importorskip('missing_package.part')\n",
    "test_function": "import pytest\ndef test(): pytest.importorskip('missing_extra')\n",
    "test_elsewhere": "import pytest\ndef test(): pytest.importorskip('of_no_group')\n",
    "test_data": "import pytest\ndef test(): pytest.skip('no reference data at missing_package')\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "tests").mkdir()
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path / "tests")
    for name, code in MODULES.items():
        (tmp_path / "tests" / f"{name}.py").write_text(code)
    return tmp_path


@pytest.mark.parametrize(
    ("ci", "status", "counts"),
    [("1", 1, "1 failed, 2 skipped, 1 error"), ("", 0, "4 skipped")],
)
def test_a_missing_package_fails_under_ci(project: Path, ci: str, status: int, counts: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors", "tests"]
    run = subprocess.run(command, cwd=project, env={**os.environ, "CI": ci}, capture_output=True, text=True)
    assert run.returncode == status, run.stdout
    assert f" {counts} in " in run.stdout
    assert ("CI has to install the dependency group test." in run.stdout) == bool(ci)
