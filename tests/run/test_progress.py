"""What a run shows while it works."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import scfm
from scfm._compat import bar_hidden
from scfm.run import progress
from scfm.run.progress import progress_bar


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar(12_000, None, 2_000) as advance:
        for _ in range(10):
            now[0] += 10
            advance(1000)
    assert capsys.readouterr().err.splitlines() == [
        "3,000 of 12,000 cells, 100 cells/s, 1.5 min left",
        "6,000 of 12,000 cells, 100 cells/s, 1.0 min left",
        "9,000 of 12,000 cells, 100 cells/s, 0.5 min left",
        "12,000 of 12,000 cells, 100 cells/s, 0.0 min left",
    ]


def test_sequences_are_counted_where_a_cell_has_several(capsys: pytest.CaptureFixture[str]) -> None:
    scfm.settings.progress = True
    adata = scfm.datasets.pbmc68k()[:3, :60].copy()
    scfm.tl.perturb(adata, "scfm-mini", device="cpu")
    scfm.settings.reset()
    n = int(adata.obs["perturb_n"].sum())
    assert f"{n}/{n}" in (shown := capsys.readouterr().err)
    assert "perturb: 100%" in shown
    assert "sequence/s" in shown


@pytest.mark.parametrize("shown", [None, True])
def test_without_stderr_nothing_is_shown(shown: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar(10, shown) as advance:
        advance(5)


@pytest.mark.parametrize(("total", "shown"), [(0, None), (0, True), (100, False)])
def test_nothing_is_shown(total: int, shown: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total, shown) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_a_bar_is_shown_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(700, True, 100) as advance:
        advance(600)
    assert "embed: 100%" in (shown := capsys.readouterr().err)
    assert "700/700" in shown


def test_a_notebook_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert bar_hidden(None) is False
    shell.config.clear()
    assert bar_hidden(None) is None
