"""What `import scfm` loads, and which folder may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "scfm"

# Lowest first. A module imports from its own level and from the ones before it, at module level and inside functions.
LEVELS = (
    ("_types", "_keys", "_compat", "_settings"),
    ("read",),
    ("genes",),
    ("encode",),
    ("batch",),
    ("nn",),
    ("weights",),
    ("run",),
    ("model",),
    ("annotate", "metrics", "ontology"),
    ("datasets", "get", "pl", "pp", "tl", "_files"),
    ("accessor", "_console", "cli", "testing", "__init__"),
)
RANK = {name: rank for rank, level in enumerate(LEVELS) for name in level}
WITHOUT_TORCH = {"read", "genes", "encode", "batch"}
MODULES = sorted(SRC.rglob("*.py"))


def folder(module: str) -> str:
    """The part of ``scfm`` that a dotted name points into: ``scfm.genes.align`` → ``genes``."""
    name = (module.split(".") + ["__init__"])[1]
    return "__init__" if name.startswith("__") else name  # `from scfm import __version__`


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in the file, relative ones resolved."""
    package = ["scfm", *path.relative_to(SRC).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from scfm import read` names a folder, `from scfm.read import open_counts` does not
            found |= {f"scfm.{alias.name}" for alias in node.names} if module == "scfm" else {module}
    return found


def violations(path: Path) -> list[str]:
    """Every import of a file that breaks a rule, in words."""
    here = folder(".".join(["scfm", *path.relative_to(SRC).with_suffix("").parts]))
    if here not in RANK:
        return [f"{here} has no place in LEVELS"]
    found = []
    for name in sorted(imports(path)):
        if name.partition(".")[0] == "torch" and here in WITHOUT_TORCH:
            found.append(f"{here} imports {name}")
        if name.partition(".")[0] != "scfm":
            continue
        there = folder(name)
        if here == "nn" and there != "nn":
            found.append(f"nn imports {name}")
        if RANK.get(there, len(LEVELS)) > RANK[here]:
            found.append(f"{here} imports {name}, which is above it")
    return found


def test_the_walk_finds_the_package() -> None:
    assert SRC / "__init__.py" in MODULES


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_nothing_imports_upward(path: Path) -> None:
    assert violations(path) == []


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("batch/plan.py", "import numpy\nfrom scfm._types import TokenBlock", 0),
        ("batch/plan.py", "def f():\n    import torch.nn.functional as F", 1),
        ("encode/rank.py", "from ..model import registry", 1),
        ("encode/rank.py", "from scfm import tl", 1),
        ("encode/rank.py", "from .kernels import rank", 0),
        ("nn/bert.py", "import torch\nfrom scfm._types import TokenBatch", 1),
        ("nn/bert.py", "from .attention import attend", 0),
        ("tl/_embed.py", "from scfm.pp import match_genes", 0),
        ("unheard_of.py", "", 1),
    ],
)
def test_the_rule_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, source: str, expected: int
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SRC", tmp_path)
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")
    assert len(violations(path)) == expected


def test_importing_scfm_is_light() -> None:
    heavy = ["torch", "scanpy", "scvi", "numba", "sklearn", "pydantic_settings", "transformers", "matplotlib"]
    code = (  # anndata itself loads numba where dask and sparse are installed
        "import sys, anndata, mudata; before = set(sys.modules); import scfm; "
        f"print(*[name for name in {heavy} if name in sys.modules and name not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
