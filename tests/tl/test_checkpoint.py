"""Runs that add up over cells, stopped in the middle: the same call goes on, to the same bits."""

from __future__ import annotations

import logging
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

import scfm
from scfm.cli import main
from scfm.tl._checkpoint import LOCK_FILE, ROWS_FILE, RUN_FILE, SUMS_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

N_CELLS, BLOCK, GENES = 45, 10, ["LYZ", "NKG7", "CD74"]
VERBS: dict[str, dict[str, Any]] = {
    "attention": {"groupby": "bulk_labels", "genes": GENES},
    "gene_context": {"groupby": "bulk_labels"},
    "predict_genes": {"genes": GENES, "n_cells": 40},
}
CALL = """
import sys, time, torch, scfm
from scfm.tl import _checkpoint
torch.set_num_threads(1)
scfm.settings.threads, scfm.settings.block_rows = 1, {block}
_checkpoint.SECONDS = _checkpoint.TIMES_LONGER = 0
fast = _checkpoint._Saving.end_block
def slow(self, *arguments):
    fast(self, *arguments)
    time.sleep({pause})
_checkpoint._Saving.end_block = slow
data, out, folder = sys.argv[1:]
scfm.tl.{verb}(data, "scfm-mini", out=out, checkpoint=folder, device="cpu", **{arguments})
"""
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:Writing zarr v2")]


@pytest.fixture(scope="module")
def model() -> Any:
    return scfm.model.load("scfm-mini")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a checkpoint after each of several blocks."""
    monkeypatch.setattr("scfm.tl._checkpoint.SECONDS", 0)
    monkeypatch.setattr("scfm.tl._checkpoint.TIMES_LONGER", 0)
    monkeypatch.setattr(scfm.settings, "block_rows", BLOCK)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "cells.h5ad"
    scfm.datasets.pbmc68k()[:N_CELLS].copy().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def expected(source: Path, model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ad.AnnData]:
    """Results of runs that nothing disturbed, without checkpoints."""
    folder = tmp_path_factory.mktemp("expected")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scfm.settings, "block_rows", BLOCK)
        return {verb: call(verb, source, model, folder, out=folder / f"{verb}.h5ad", checkpoint=None) for verb in VERBS}


def call(verb: str, source: Path, model: Any, folder: Path, **arguments: Any) -> ad.AnnData:
    how = {"out": folder / "out.h5ad", "checkpoint": folder / "run", "device": "cpu"} | VERBS[verb] | arguments
    return ad.read_h5ad(getattr(scfm.tl, verb)(source, model, **how))


def results(adata: ad.AnnData, verb: str) -> list[Any]:
    """Everything that a verb has stored, as arrays and text."""
    found: list[Any] = []
    for slot in ("varp", "layers"):
        for _, matrix in sorted(getattr(adata, slot).items()):
            found += [matrix.data, matrix.indices, matrix.indptr]
    tables = [*adata.varm.values(), *(one for one in adata.uns[verb].values() if isinstance(one, pd.DataFrame))]
    found += [table.to_numpy() for table in tables]
    params = {name: value for name, value in adata.uns[verb]["params"].items() if name != "versions"}
    return [*found, np.array(repr(params))]


def check_same(found: ad.AnnData, expected: ad.AnnData, verb: str) -> None:
    for one, other in zip(results(found, verb), results(expected, verb), strict=True):
        pd.testing.assert_frame_equal(
            pd.DataFrame(np.atleast_1d(one)), pd.DataFrame(np.atleast_1d(other)), check_exact=True
        )


@pytest.mark.parametrize("verb", VERBS)
def test_kill_at_random_moments(verb: str, source: Path, tmp_path: Path) -> None:
    def command(folder: Path, pause: float) -> list[str]:
        script = CALL.format(block=BLOCK, pause=pause, verb=verb, arguments=VERBS[verb])
        return [sys.executable, "-c", script, *map(str, (source, folder / "out.h5ad", folder / "run"))]

    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    whole.mkdir()
    killed.mkdir()
    subprocess.run(command(whole, 0), check=True)
    sums, n_cells = killed / "run" / SUMS_FILE, []
    for _ in range(2):
        with subprocess.Popen(command(killed, 0.2)) as process:
            before = sums.stat().st_mtime_ns if sums.exists() else 0
            while process.poll() is None and (sums.stat().st_mtime_ns if sums.exists() else 0) == before:
                time.sleep(0.005)
            time.sleep(rng.random() * 0.3)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        n_cells.append(int(np.load(sums)["place"][0]))
    assert 0 < n_cells[0] < n_cells[1] <= N_CELLS
    assert not (killed / "out.h5ad").exists()
    subprocess.run(command(killed, 0), check=True)
    check_same(*(ad.read_h5ad(folder / "out.h5ad") for folder in (killed, whole)), verb)
    assert [path.name for path in killed.iterdir()] == ["out.h5ad"]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("number", [1, 3, 6, 9])
@pytest.mark.parametrize("verb", VERBS)
def test_after_a_stop_the_same_call_gives_the_same_bits(
    verb: str,
    number: int,
    source: Path,
    model: Any,
    tmp_path: Path,
    stop_at: Callable[..., Any],
    expected: dict[str, ad.AnnData],
) -> None:
    stopped = stop_at(number, dead=True)
    with pytest.raises(KeyboardInterrupt):
        call(verb, source, model, tmp_path)
    assert stopped()
    check_same(call(verb, source, model, tmp_path), expected[verb], verb)
    assert not (tmp_path / "run").exists()


def stopped_run(verb: str, source: Path, model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ended after two of its blocks."""
    from scfm.tl._checkpoint import _Saving

    save = _Saving.end_block

    def end_block(self: Any, stop: int, stats: Any) -> None:
        save(self, stop, stats)
        if stop >= 2 * BLOCK:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Saving, "end_block", end_block)
        with pytest.raises(KeyboardInterrupt):
            call(verb, source, model, folder)


@pytest.mark.usefixtures("often")
def test_what_is_done_is_not_computed_again(
    source: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stopped_run("gene_context", source, model, tmp_path, monkeypatch)
    with caplog.at_level(logging.INFO, "scfm"):
        found = call("gene_context", source, model, tmp_path)
    assert f"going on with {tmp_path / 'run'}: {2 * BLOCK} cells are done" in caplog.text
    assert f"compared the genes of {N_CELLS - 2 * BLOCK} cells" in caplog.text
    assert found.uns["gene_context"]["params"]["n_cells"] == N_CELLS


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("verb", "change", "match"),
    [
        ("attention", {"heads": "max"}, "heads was 'mean' and is 'max'"),
        ("attention", {"genes": ["LYZ"]}, r"genes was \['LYZ', 'NKG7', 'CD74'\] and is \['LYZ'\]"),
        ("attention", {"groupby": None}, "groupby was 'bulk_labels' and is None"),
        ("attention", {"n_cells": 3}, "n_cells was None and is 3"),
        ("attention", {"hidden_layer": -1}, "hidden_layer was 0 and is -1"),
        ("predict_genes", {"mask": 0.5}, "mask was 'each' and is 0.5"),
        ("predict_genes", {"n_top": 0}, "n_top > 0 was True and is False"),
        ("gene_context", {"max_tokens": 30}, "max_tokens was .* and is 30"),
    ],
)
def test_other_arguments_are_refused(
    verb: str,
    change: dict[str, Any],
    match: str,
    source: Path,
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped_run(verb, source, model, tmp_path, monkeypatch)
    with pytest.raises(FileExistsError, match=match):
        call(verb, source, model, tmp_path, **change)
    assert (tmp_path / "run" / SUMS_FILE).exists()


@pytest.mark.usefixtures("often")
def test_names_and_the_number_of_keys_may_change(
    source: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_run("attention", source, model, tmp_path, monkeypatch)
    found = call("attention", source, model, tmp_path, n_top=2, key_added="other")
    assert np.diff(found.varp["other"].tocsr().indptr).max() == 2
    assert found.uns["other"]["params"]["n_cells"] == N_CELLS


@pytest.mark.usefixtures("often")
def test_another_run_is_refused(source: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "cells.h5ad"
    shutil.copy(source, copy)
    stopped_run("attention", copy, model, tmp_path, monkeypatch)
    with pytest.raises(FileExistsError, match="function was 'scfm.tl.attention' and is 'scfm.tl.gene_context'"):
        call("gene_context", copy, model, tmp_path)
    folder = tmp_path / "run"
    with FileLock(folder / LOCK_FILE), pytest.raises(RuntimeError, match="Another process is going on with"):
        call("attention", copy, model, tmp_path)
    scfm.datasets.pbmc68k()[:N_CELLS, ::-1].copy().write_h5ad(copy)
    with pytest.raises(FileExistsError, match="cells.h5ad as it was: .* now it is"):
        call("attention", copy, model, tmp_path)
    (folder / RUN_FILE).write_text('{"format": 0}')
    with pytest.raises(FileExistsError, match="of another version of scfm"):
        call("attention", copy, model, tmp_path)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("name", "harm"),
    [
        (SUMS_FILE, "cut"),
        (SUMS_FILE, "other bytes"),
        (ROWS_FILE.format(0), "cut"),
        (ROWS_FILE.format(0), "other bytes"),
        (ROWS_FILE.format(0), "gone"),
    ],
)
def test_damage_is_told(
    name: str, harm: str, source: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_run("predict_genes", source, model, tmp_path, monkeypatch)
    file = tmp_path / "run" / name
    content = file.read_bytes()
    if harm == "gone":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        at = content.index(b"NUMPY") + 200
        file.write_bytes(content[:at] + bytes(255 - byte for byte in content[at : at + 8]) + content[at + 8 :])
    with pytest.raises(ValueError, match=f"{name} is damaged .* Remove {tmp_path / 'run'}"):
        call("predict_genes", source, model, tmp_path)
    shutil.rmtree(tmp_path / "run")
    assert call("predict_genes", source, model, tmp_path).uns["predict_genes"]["params"]["n_cells"] == 40


def test_places_that_are_refused(source: Path, model: Any, tmp_path: Path) -> None:
    adata = ad.read_h5ad(source)
    with pytest.raises(ValueError, match="checkpoint= is for the path of a file.*Write the AnnData to a file"):
        scfm.tl.gene_context(adata, model, checkpoint=tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="mine is no checkpoint of scfm"):
        call("gene_context", source, model, tmp_path, checkpoint=tmp_path / "mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        call("gene_context", source, model, tmp_path, checkpoint=tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        call("gene_context", source, model, tmp_path, checkpoint=tmp_path / "no" / "run")
    adata.write_zarr(tmp_path / "cells.zarr")
    for place in ("cells.zarr", "cells.zarr/run", "out.zarr", "out.zarr/run"):
        out = tmp_path / "out.zarr"
        with pytest.raises(ValueError, match="is, or is inside of"):
            call("gene_context", tmp_path / "cells.zarr", model, tmp_path, out=out, checkpoint=tmp_path / place)
    assert not (tmp_path / "out.zarr").exists()
    (tmp_path / "empty").mkdir()
    call("gene_context", source, model, tmp_path, checkpoint=tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_without_room_nothing_is_lost(
    source: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scfm.tl._checkpoint.check_room", lambda *_: (_ for _ in ()).throw(OSError(28, "no room")))
    with pytest.raises(OSError, match="no room"):
        call("attention", source, model, tmp_path)
    monkeypatch.undo()
    found = call("attention", source, model, tmp_path)
    assert found.uns["attention"]["params"]["n_cells"] == N_CELLS


def test_the_command_line(source: Path, tmp_path: Path) -> None:
    words = ["attention", str(source), "--model", "scfm-mini", "--genes", *GENES, "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "out.h5ad"), "--checkpoint", str(tmp_path / "run")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5ad"]
