"""What a command shows while it works."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

import scfm
from scfm._console import console_bar
from scfm.run import progress
from scfm.run.progress import cells_bar, use_bar

if TYPE_CHECKING:
    from scfm.run.progress import Bar


@pytest.mark.parametrize("bar", [console_bar, cells_bar])
def test_a_log_gets_a_line_now_and_then(
    bar: Bar, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with bar(12_000, None, 2_000) as advance:
        for _ in range(10):
            now[0] += 10
            advance(1000)
    assert capsys.readouterr().err.splitlines() == [
        "3,000 of 12,000 cells, 100 cells/s, 1.5 min left",
        "6,000 of 12,000 cells, 100 cells/s, 1.0 min left",
        "9,000 of 12,000 cells, 100 cells/s, 0.5 min left",
        "12,000 of 12,000 cells, 100 cells/s, 0.0 min left",
    ]


@pytest.mark.parametrize("bar", [console_bar, cells_bar])
@pytest.mark.parametrize("shown", [None, True])
def test_without_stderr_nothing_is_shown(bar: Bar, shown: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", None)
    with bar(10, shown, 0) as advance:
        advance(5)


@pytest.mark.parametrize(("total", "shown"), [(0, None), (100, False)])
def test_nothing_is_shown(total: int, shown: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    with console_bar(total, shown) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("bar", "words"), [(console_bar, "700 of 700 cells"), (cells_bar, "700/700")])
def test_a_bar_is_shown_where_it_is_asked_for(bar: Bar, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with bar(700, True, 100) as advance:
        advance(600)
    assert words in capsys.readouterr().err


def test_runs_show_the_bar_that_is_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    adata = scfm.datasets.pbmc68k()[:50].copy()
    scfm.settings.progress = True
    try:
        with use_bar(console_bar):
            scfm.tl.embed(adata, "scfm-mini", device="cpu")
        assert "50 of 50 cells" in capsys.readouterr().err
        scfm.tl.embed(adata, "scfm-mini", device="cpu")
        assert "embed: 100%" in capsys.readouterr().err
    finally:
        scfm.settings.reset()
    with cells_bar(5, False) as advance:
        advance(5)
    assert capsys.readouterr().err == ""
