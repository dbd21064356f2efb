"""Commands where the environment, the arguments or the console are not as they should be."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import scfm
from scfm.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOGIN = "https://me:pa55word@mirror.example"


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    scfm.settings.reset()


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    scfm.datasets.pbmc68k()[:5].copy().write_h5ad("a.h5ad")
    return tmp_path / "a.h5ad"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int | str | None, str]:
    """Exit code, and what is printed."""
    try:
        code: int | str | None = main(words)
    except SystemExit as end:
        code = end.code
    return code, "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("embed a.h5ad --out b.h5ad", 2, "missing: --model"),
        ("embed --model scfm-mini", 2, "missing: DATA, --out"),
        ("metrics a.h5ad", 2, "missing: --labels-key, --use-rep"),
        ("embed a.h5ad --out b.h5ad --model ''", 1, "ValueError: model is an empty text"),
        ("embed a.h5ad --out b.h5ad --model scfm-mini --key-added .", 1, "--key-added='.' cannot be stored"),
        ("match a.h5ad --model scfm-mini --gene-key none", 1, "scfm: KeyError: --gene-key="),
    ],
)
def test_messages_speak_of_what_was_typed(
    words: str, code: int, told: str, cells: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, text = said(capsys, *(word.strip("'") for word in words.split(" ")))
    assert (found, told in text) == (code, True), text
    assert "\\n" not in text
    assert 'KeyError: "' not in text


@pytest.mark.parametrize("command", ["models", "env", "embed --help"])
def test_a_wrong_variable_is_one_line(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCFM_THREADS", "many")
    call = [sys.executable, "-m", "scfm", *command.split()]
    run = subprocess.run(call, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("scfm: ValueError: SCFM_THREADS='many' cannot be used: it should be a valid integer")
    assert run.stderr.count("\n") == 1


def test_no_password_is_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    scfm.settings.hub_endpoint = LOGIN
    scfm.settings.cellxgene_endpoint = LOGIN
    code, text = said(capsys, "env")
    assert code == 0
    assert "settings.hub_endpoint: https://***@mirror.example" in text
    for words in ("cellxgene --species human", f"embed-store {LOGIN}/a.zarr --model scfm-mini --out {tmp_path}/b.zarr"):
        code, shown = said(capsys, *words.split())
        assert code == 1
        text += shown
    assert "pa55word" not in text


@pytest.mark.skipif(sys.platform == "win32", reason="closes stderr in another way")
def test_without_stderr(cells: Path) -> None:
    call = f"{sys.executable} -m scfm embed {cells} --model scfm-mini --out {cells.parent}/b.h5ad 2>&-"
    assert subprocess.run(call, shell=True, check=False).returncode == 0
    assert (cells.parent / "b.h5ad").exists()
