from __future__ import annotations

import os
import re
import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import TypeVar

    Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

# xdist already fills the cores with processes. These are read when torch is first imported, so torch need not be
# imported here.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# The settings of whoever runs the tests must not change what the tests see.
for name in [name for name in os.environ if name.startswith("SCFM_") and name != "SCFM_SHARED"]:
    del os.environ[name]
os.environ["SCFM_FSYNC"] = "0"  # the tests that need it turn it on
os.environ["SCFM_OFFLINE"] = "1"  # only tests with a server of their own go online

collect_ignore_glob = ["example_*"]  # which would register their models for all tests

# Few examples, the same ones each time, unless a nightly run (TEST_PROFILE=thorough) looks for new ones.
settings.register_profile("quick", deadline=None, max_examples=10, derandomize=True, database=None, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=200, print_blob=True)
settings.load_profile(os.environ.get("TEST_PROFILE", "quick"))


def must_be_importable() -> set[str]:
    """Modules of the packages, and of the extras of packages, in the dependency group ``test``."""
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    requirements = tomllib.loads(text)["dependency-groups"]["test"]
    return {name.replace("-", "_") for text in requirements for name in re.findall(r"[A-Za-z][\w-]*", text)}


def failed_if_missing(report: Report) -> Report:
    """Make a skip for want of a package that CI has to install a failure."""
    if os.environ.get("CI") and report.skipped:
        reason = str(report.longrepr)
        missing = re.search(r"could not import '(\w+)", reason)
        if missing and missing[1] in must_be_importable():
            report.outcome, report.longrepr = "failed", f"{reason}\nCI has to install the dependency group test."
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return failed_if_missing((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return failed_if_missing((yield))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the attacks in tests/attack found: how many of each kind, how often what came of them, and the worst."""
    found: dict[str, list[dict[str, Any]]] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, figures in report.user_properties if report.when == "call" else ():
            found.setdefault(name, []).append(figures)
    for name, tried in sorted(found.items()):
        sums = {key: [figures[key] for figures in tried] for key in tried[0]}
        said = (
            f"{key} {max(values) if isinstance(values[0], float) else sum(values):.4g}" for key, values in sums.items()
        )
        terminalreporter.write_line(f"{name}: {len(tried)}; {', '.join(said)}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with reference data that is too large for the repository; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("SCFM_SHARED", default))
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}; set SCFM_SHARED to the folder that holds it")
    return path


@pytest.fixture
def stop_at() -> Iterator[Callable[..., Callable[[], bool]]]:
    """Interrupt a program at one of the steps that bring results to the disk and give them their name."""

    from scfm import _paths

    def stop_at(number: int, *, after: bool = False, dead: bool = False) -> Callable[[], bool]:
        """Stop before or after the step of this number; who is ``dead`` cleans nothing up. Returns whether it came to that."""
        steps = 0

        def counted(step: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                nonlocal steps
                steps += 1
                stops = steps == number + 1 or (dead and steps > number)
                result = None if stops and not (after and steps == number + 1) else step(*arguments)
                if stops:
                    if dead:
                        inner.setattr("shutil.rmtree", lambda *_, **__: None)
                    raise KeyboardInterrupt
                return result

            return run

        inner = pytest.MonkeyPatch()
        for name in ("sync", "_rename", "_exchange"):
            inner.setattr(f"scfm._paths.{name}", counted(getattr(_paths, name)))

        def stopped() -> bool:
            inner.undo()
            return steps > number

        undo.callback(inner.undo)
        return stopped

    with ExitStack() as undo:
        yield stop_at


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost small matrices a hundred times what they save where cores are busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
