"""The name under which scfm is installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import scfm
from scfm._package import DISTRIBUTION, pip_install, version_of

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_name_is_that_of_the_project() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert PROJECT["version"] == scfm.__version__ == version_of("scfm")
    assert version_of("numpy").split(".")


def test_messages_name_extras_that_exist() -> None:
    named = {
        extra
        for path in (ROOT / "src").rglob("*.py")
        for call in re.findall(r"pip_install\(([^)]*)\)", path.read_text(encoding="utf-8"))
        for extra in re.findall(r"[\"'](\w+)[\"']", call)
    }
    assert {"arrow", "cluster", "esm"} <= named <= PROJECT["optional-dependencies"].keys()


def test_no_text_tells_to_install_another_project() -> None:
    """Of pages, the one about installing is filled in by Sphinx; what others need, they call by the name of an extra."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"\n{pip_install()}\n" in readme
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "tutorials").glob("*.ipynb")]:
        assert not re.search(r"pip install \W*scfm(?!-tools)\b", path.read_text(encoding="utf-8")), path
