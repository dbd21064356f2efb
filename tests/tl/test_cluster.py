"""Stores filled by a dask cluster of real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest

import scfm
from scfm.cli import main
from scfm.run.store import ShardStore

distributed = pytest.importorskip("distributed")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY, ROWS, N_OBS = "X_scfm_mini", 64, 700
ALONE = (
    "import sys, torch, scfm; torch.set_num_threads(1); scfm.settings.threads = 1; "
    "scfm.tl.embed_store(sys.argv[1], 'scfm-mini', sys.argv[2], shard_rows=64, device='cpu')"
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "cells.h5ad"
    scfm.datasets.pbmc68k().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    scfm.settings.threads = 1
    yield
    scfm.settings.reset()


def values(out: Path) -> np.ndarray:
    return np.asarray(ad.read_zarr(out).obsm[KEY])


def test_a_cluster_equals_a_single_process(client: Any, source: Path, tmp_path: Path) -> None:
    out = scfm.tl.embed_store(source, "scfm-mini", tmp_path / "a.zarr", shard_rows=ROWS, device="cpu", client=client)
    subprocess.run([sys.executable, "-c", ALONE, str(source), str(tmp_path / "b.zarr")], check=True)
    np.testing.assert_array_equal(values(out), values(tmp_path / "b.zarr"))
    assert np.isfinite(values(out)).all()
    assert ad.read_zarr(out).uns["scfm_mini"]["params"]["n_cells"] == N_OBS


def test_a_worker_that_is_killed(client: Any, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "emb.zarr"
    pids = list(client.run(os.getpid).values())

    def kill() -> None:
        while not (out.exists() and ShardStore.open(out).done()):
            time.sleep(0.005)
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    scfm.tl.embed_store(source, "scfm-mini", out, shard_rows=16, device="cpu", client=client)
    killer.join()
    store = ShardStore.open(out)
    assert not store.missing()
    assert np.isfinite(values(out)).all()
    client.wait_for_workers(2, timeout=60)
    assert set(client.run(os.getpid).values()) != set(pids)


def test_only_what_is_missing_is_computed(client: Any, source: Path, tmp_path: Path) -> None:
    out = scfm.tl.embed_store(source, "scfm-mini", tmp_path / "a.zarr", shard_rows=ROWS, device="cpu", shard="1/2")
    before = ShardStore.open(out).done()
    scfm.tl.embed_store(source, "scfm-mini", out, shard_rows=ROWS, device="cpu", client=client)
    after = ShardStore.open(out).done()
    assert len(before) < len(after)
    assert {number: after[number] for number in before} == before


def test_errors_of_workers_come_back(
    client: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scfm.tl._cluster.WAIT", 0.1)
    out = scfm.tl.embed_store(source, "scfm-mini", tmp_path / "a.zarr", shard_rows=ROWS, device="cpu", shard="1/20")
    store = ShardStore.open(out)
    with store.lock(store.shards[5]), pytest.raises(RuntimeError, match="Another process is filling"):
        scfm.tl.embed_store(source, "scfm-mini", out, shard_rows=ROWS, device="cpu", client=client)
    with store.lock(None), pytest.raises(RuntimeError, match="Another process is filling"):
        scfm.tl.embed_store(source, "scfm-mini", out, shard_rows=ROWS, device="cpu", client=client)
    with pytest.raises(TypeError, match="give its name or folder, not the loaded model"):
        scfm.tl.embed_store(source, scfm.model.load("scfm-mini"), out, client=client)


def test_the_command_line(client: Any, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "emb.zarr"
    call = ["embed-store", str(source), "--model", "scfm-mini", "--out", str(out), "--device", "cpu"]
    assert main([*call, "--scheduler", client.scheduler.address, "--local-cluster", "2"]) == 1
    assert "name two different clusters" in capsys.readouterr().err
    assert main([*call, "--shard-rows", "128", "--scheduler", client.scheduler.address]) == 0
    assert f"{out}: 6 of 6 shards, 700 of 700 cells" in capsys.readouterr().out
    assert np.isfinite(values(out)).all()
