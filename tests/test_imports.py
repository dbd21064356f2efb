"""What `import scfm` loads, and which module may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import deque
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    Graph = dict[str, list[str]]

ROOT = Path(__file__).parents[1]

# Lowest first. A module imports from its own level and from the ones before it, at module level and inside functions.
LEVELS = (
    (
        "_types",
        "_keys",
        "_paths",
        "_text",
        "_checks",
        "_docs",
        "_elsewhere",
        "_warn",
        "_lock",
        "_compat",
        "_package",
        "_settings",
    ),
    ("read",),
    ("genes",),
    ("encode",),
    ("batch",),
    ("nn",),
    ("weights",),
    ("run",),
    ("annotate", "metrics", "ontology"),
    ("tasks",),
    ("model",),
    ("train",),
    ("datasets", "get", "pl", "pp", "tl", "_write"),
    ("accessor", "cli", "testing", "__init__"),
)
RANK = {name: rank for rank, level in enumerate(LEVELS) for name in level}
WITHOUT_TORCH = {"read", "genes", "encode", "batch"}
ON_ARRAYS = {"annotate", "metrics", "ontology"}


def read_modules() -> dict[str, str]:
    """Text of every module, by its path as in ``scfm/read/joined.py``."""
    return {
        path.relative_to(top.parent).as_posix(): path.read_text(encoding="utf-8")
        for top in (ROOT / "src" / "scfm", ROOT / "benchmarks")
        for path in sorted(top.rglob("*.py"))
    }


def dotted(file: str) -> str:
    """Name of a module: ``scfm/read/joined.py`` → ``scfm.read.joined``, ``scfm/read/__init__.py`` → ``scfm.read``."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def folder(module: str) -> str:
    """The part of ``scfm`` that a dotted name points into: ``scfm.genes.align`` → ``genes``."""
    name = (module.split(".") + ["__init__"])[1]
    return "__init__" if name.startswith("__") else name  # `from scfm import __version__`


@cache
def imports(file: str, text: str) -> frozenset[str]:
    """Dotted names of all that a file imports, wherever in the file, relative ones resolved."""
    package = file.split("/")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def resolve(name: str, modules: set[str]) -> str | None:
    """The module that an imported name is, or is taken out of: ``scfm.read.open_counts`` → ``scfm.read``."""
    while name not in modules and name:
        name = name.rpartition(".")[0]
    return name or None


def broken_ranks(module: str, imported: str) -> Iterator[str]:
    """What is wrong with an import by its folder; ``imported`` may be a module of another package."""
    here, there = folder(module), folder(imported)
    if imported.partition(".")[0] == "torch" and here in WITHOUT_TORCH:
        yield f"{module} imports {imported}; {here} does without torch"
    if imported.partition(".")[0] != "scfm":
        return
    if here == "nn" and there != "nn":
        yield f"{module} imports {imported}; nn imports nothing of scfm"
    if here in ON_ARRAYS and there not in {here, *LEVELS[0], *ON_ARRAYS}:
        yield f"{module} imports {imported}; {here} works on arrays alone"
    elif RANK.get(there, len(LEVELS)) > RANK[here]:
        yield f"{module} imports {imported}, which is above it"


def private_owner(module: str) -> str | None:
    """The package whose own a module is by an underscore in its name; those at the top of scfm are everybody's."""
    parts = module.split(".")
    private = [at for at, part in enumerate(parts) if part.startswith("_") and at > 1]
    return ".".join(parts[: private[0]]) if private else None


def circles(graph: Graph) -> Iterator[str]:
    """For each module that imports itself by way of others, the shortest such way; each way once."""
    seen = set()
    for start in sorted(graph):
        before: dict[str, str] = {}
        waiting = deque([start])
        while waiting and start not in before:
            module = waiting.popleft()
            for imported in graph[module]:
                if imported not in before:
                    before[imported] = module
                    waiting.append(imported)
        if start not in before:
            continue
        way = [start, before[start]]
        while way[-1] != start:
            way.append(before[way[-1]])
        if frozenset(way) not in seen:
            seen.add(frozenset(way))
            yield f"circle: {' → '.join(reversed(way))}"


def findings(texts: dict[str, str]) -> list[str]:
    """Everything that breaks a rule, in words."""
    found: list[str] = []
    graph: Graph = {}
    modules = {dotted(file) for file in texts}
    for file, text in texts.items():
        module, names = dotted(file), imports(file, text)
        targets = {name: resolve(name, modules) for name in names}
        graph[module] = sorted({target for target in targets.values() if target not in (None, module)})
        if module.startswith("scfm") and folder(module) not in RANK:
            found.append(f"{module} has no place in LEVELS")
        elif module.startswith("scfm"):
            for name in {targets[name] or name for name in names}:
                found += broken_ranks(module, name)
        for target in graph[module]:
            owner = private_owner(target)
            if owner is not None and not file.replace("/", ".").startswith(f"{owner}."):
                found.append(f"{module} imports {target}, which is private to {owner}")
    return sorted([*found, *circles(graph)])


def test_the_walk_finds_the_package() -> None:
    assert {"scfm/__init__.py", "scfm/read/joined.py", "benchmarks/readers.py"} <= read_modules().keys()


def test_imports_keep_to_the_rules() -> None:
    found = findings(read_modules())
    assert found == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("scfm/batch/new.py", "import numpy\nfrom scfm._types import TokenBlock", []),
        (
            "scfm/batch/new.py",
            "def f():\n    import torch.nn.functional as F",
            ["scfm.batch.new imports torch.nn.functional; batch does without torch"],
        ),
        ("scfm/encode/new.py", "from ..model import load", ["scfm.encode.new imports scfm.model, which is above it"]),
        ("scfm/encode/new.py", "from scfm import tl", ["scfm.encode.new imports scfm.tl, which is above it"]),
        ("scfm/encode/new.py", "from .kernels import rank", []),
        ("scfm/encode/_new.py", "from scfm.encode._rows import spread", []),
        (
            "scfm/nn/new.py",
            "import torch\nfrom scfm._types import TokenBatch",
            ["scfm.nn.new imports scfm._types; nn imports nothing of scfm"],
        ),
        ("scfm/nn/new.py", "from .attention import attend", []),
        ("scfm/tl/new.py", "from scfm.pp import match_genes", []),
        ("scfm/metrics/new.py", "from scfm._types import Compat\nfrom scfm.ontology import read", []),
        (
            "scfm/metrics/new.py",
            "from scfm.read import open_counts",
            ["scfm.metrics.new imports scfm.read; metrics works on arrays alone"],
        ),
        (
            "scfm/annotate/new.py",
            "from scfm import model",
            ["scfm.annotate.new imports scfm.model; annotate works on arrays alone"],
        ),
        ("scfm/unheard_of.py", "", ["scfm.unheard_of has no place in LEVELS"]),
        (
            "scfm/tl/new.py",
            "from scfm.read import _open",
            ["scfm.tl.new imports scfm.read._open, which is private to scfm.read"],
        ),
        (
            "benchmarks/new.py",
            "from scfm.read._open import open_counts",
            ["benchmarks.new imports scfm.read._open, which is private to scfm.read"],
        ),
    ],
)
def test_the_rules_themselves(file: str, text: str, expected: list[str]) -> None:
    before = read_modules()
    assert sorted(set(findings(before | {file: text})) - set(findings(before))) == expected


@pytest.mark.parametrize("indent", ["", "if TYPE_CHECKING:\n    ", "def f():\n    "])
def test_a_circle_is_found_and_named(indent: str) -> None:
    texts = {
        "benchmarks/a.py": "from . import b",
        "benchmarks/b.py": f"{indent}from .c import C",
        "benchmarks/c.py": "import benchmarks.a\nimport benchmarks.d",
        "benchmarks/d.py": "",
    }
    assert findings(texts) == ["circle: benchmarks.a → benchmarks.b → benchmarks.c → benchmarks.a"]


def test_importing_scfm_is_light() -> None:
    heavy = ["torch", "scanpy", "scvi", "numba", "sklearn", "pydantic_settings", "transformers", "matplotlib"]
    code = (  # anndata itself loads numba where dask and sparse are installed
        "import sys, anndata, mudata; before = set(sys.modules); import scfm; "
        f"print(*[name for name in {heavy} if name in sys.modules and name not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
