"""What a command shows while it works."""

from __future__ import annotations

import pytest

import scfm
from scfm import _console
from scfm._console import console_bar
from scfm.run.progress import cells_bar, use_bar


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(_console.time, "monotonic", lambda: now[0])
    with console_bar(10_000, None) as advance:
        for _ in range(10):
            now[0] += 10
            advance(1000)
    assert capsys.readouterr().err.splitlines() == [
        "3,000 of 10,000 cells, 100 cells/s, 1.2 min left",
        "6,000 of 10,000 cells, 100 cells/s, 0.7 min left",
        "9,000 of 10,000 cells, 100 cells/s, 0.2 min left",
    ]


@pytest.mark.parametrize(("total", "progress"), [(0, None), (100, False)])
def test_nothing_is_shown(total: int, progress: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    with console_bar(total, progress) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_a_bar_is_shown_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with console_bar(700, True) as advance:
        advance(700)
    assert "700 of 700 cells" in capsys.readouterr().err


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
