"""Embeddings of files into stores: interrupted, shared, resumed, refused."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest

import scfm
from scfm.run.plan import plan_shards
from scfm.run.store import ShardStore
from tests.rounding import close

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

N_OBS, SHARD_ROWS, KEY = 700, 64, "X_scfm_mini"
CALL = (
    "import scfm, sys, torch; torch.set_num_threads(1); scfm.settings.threads = 1; "
    "scfm.tl.embed_store(sys.argv[1], 'scfm-mini', sys.argv[2], shard_rows={rows}, device='cpu', **{extra})"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "cells.h5ad"
    scfm.datasets.pbmc68k().write_h5ad(path)
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    scfm.settings.threads = 1
    yield
    torch.set_num_threads(before)
    scfm.settings.reset()


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Values of a run that nothing disturbed, in a process of its own."""
    out = tmp_path_factory.mktemp("expected") / "emb.zarr"
    subprocess.run(command(source, out), check=True)
    return values(out)


def command(source: Path, out: Path, **extra: Any) -> list[str]:
    return [sys.executable, "-c", CALL.format(rows=SHARD_ROWS, extra=extra), str(source), str(out)]


def embed(source: Path, out: Path, **arguments: Any) -> Path:
    return scfm.tl.embed_store(source, "scfm-mini", out, **{"shard_rows": SHARD_ROWS, "device": "cpu"} | arguments)


def values(out: Path) -> np.ndarray:
    return np.asarray(ad.read_zarr(out).obsm[KEY])


def test_the_store_is_an_anndata(source: Path, tmp_path: Path, expected: np.ndarray) -> None:
    out = embed(source, tmp_path / "emb.zarr")
    adata, store = ad.read_h5ad(source), ad.read_zarr(out)
    assert list(store.obs_names) == list(adata.obs_names)
    np.testing.assert_array_equal(store.obsm[KEY], expected)
    scfm.tl.embed(adata, "scfm-mini", device="cpu")
    close(store.obsm[KEY], adata.obsm[KEY])
    params = store.uns["scfm_mini"]["params"]
    assert {name: params[name] for name in ("n_cells", "n_cells_empty", "model", "dtype")} == {
        "n_cells": N_OBS,
        "n_cells_empty": 0,
        "model": "scfm-mini",
        "dtype": "float32",
    }
    assert set(params) == set(adata.uns["scfm_mini"]["params"])


@pytest.mark.parametrize("parts", [1, 3, 20])
def test_parts_make_the_whole(parts: int, source: Path, tmp_path: Path, expected: np.ndarray) -> None:
    out = tmp_path / "emb.zarr"
    for part in random.Random(0).sample(range(1, parts + 1), parts):
        embed(source, out, shard=f"{part}/{parts}")
    np.testing.assert_array_equal(values(out), expected)


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")])
def test_parts_from_the_environment(
    names: tuple[str, str], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(other, raising=False)
    with pytest.raises(ValueError, match="found none of RANK/WORLD_SIZE or SLURM_PROCID/SLURM_NTASKS"):
        embed(source, tmp_path / "no.zarr", shard="auto")
    monkeypatch.setenv(names[0], "1")
    monkeypatch.setenv(names[1], "2")
    found = values(embed(source, tmp_path / "emb.zarr", shard="auto"))
    first = len(plan_shards(N_OBS, SHARD_ROWS)) // 2 * SHARD_ROWS
    assert np.isnan(found[:first]).all()
    assert np.isfinite(found[first:]).all()


def test_kill_at_random_moments(source: Path, tmp_path: Path, expected: np.ndarray) -> None:
    out, rng, killed = tmp_path / "emb.zarr", random.Random(0), 0
    while killed < 10:
        process = subprocess.Popen(command(source, out))
        folder = out / "obsm" / KEY / ".shards"
        had = len(list(folder.glob("*.json")))
        while process.poll() is None and len(list(folder.glob("*.json"))) <= had:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        killed += 1
        if out.exists():
            store = ShardStore.open(out)
            found = values(out)
            for shard in store.shards:
                if shard.number in store.done():
                    np.testing.assert_array_equal(found[shard.start : shard.stop], expected[shard.start : shard.stop])
    assert killed >= 5
    embed(source, out)
    np.testing.assert_array_equal(values(out), expected)


def test_finished_shards_are_not_computed_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = embed(source, tmp_path / "emb.zarr", shard="1/2")
    before = {path: path.stat().st_mtime_ns for path in (out / "obsm" / KEY).rglob("c/*/*")}
    embed(source, out)
    assert before
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in before.items())
    monkeypatch.setattr("scfm.model.session.run", lambda *_: pytest.fail("computed again"))
    embed(source, out)


def test_a_second_run_is_refused(source: Path, tmp_path: Path) -> None:
    out = embed(source, tmp_path / "emb.zarr", shard="1/20")
    store = ShardStore.open(out)
    with store.lock(store.shards[3]):
        refused = subprocess.run(command(source, out), capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert "RuntimeError: Another process is filling" in refused.stderr
        assert "cells 192 to 256" in refused.stderr
    embed(source, out)
    assert not store.missing()


def test_a_changed_source_is_refused(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cells.h5ad"
    copy.write_bytes(source.read_bytes())
    out = embed(copy, tmp_path / "emb.zarr", shard="1/2")
    os.utime(copy, ns=(1, 1))
    with pytest.raises(FileExistsError, match="made of a source that was another, or that has changed since"):
        embed(copy, out)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"max_tokens": 100}, "max_tokens was .* and is 100"),
        ({"hidden_layer": -1}, "hidden_layer was 0 and is -1"),
        ({"dtype": "bfloat16"}, "dtype was 'float32' and is 'bfloat16'"),
        ({"key_added": "other"}, "key_added"),
        ({"shard_rows": 128}, "shard_rows"),
    ],
)
def test_other_parameters_are_refused(change: dict[str, Any], match: str, source: Path, tmp_path: Path) -> None:
    out = embed(source, tmp_path / "emb.zarr", shard="1/20")
    with pytest.raises(FileExistsError, match=match):
        embed(source, out, **change)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"shard": "0/4"}, ValueError, "counted from 1"),
        ({"shard": "5/4"}, ValueError, "counted from 1"),
        ({"shard": "a"}, ValueError, "counted from 1"),
        ({"shard_rows": 1500}, ValueError, "multiple of 1024, or from 1 to 1024"),
        ({"shard_rows": 0}, ValueError, "multiple of 1024"),
        ({"pooling": "gene"}, ValueError, "use scfm.tl.embed"),
        ({"key_added": "a/b"}, ValueError, "without '/'"),
        ({"nonsense": 1}, TypeError, "'nonsense' is no option"),
    ],
)
def test_wrong_arguments(
    arguments: dict[str, Any], error: type[Exception], match: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        embed(source, tmp_path / "emb.zarr", **arguments)
    assert not list(tmp_path.iterdir())


def test_wrong_places(source: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="source must be str, Path or a list of str or Path; got AnnData"):
        embed(ad.read_h5ad(source), tmp_path / "emb.zarr")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        embed(source, tmp_path / "nowhere" / "emb.zarr")
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="is no store that scfm.tl.embed_store"):
        embed(source, tmp_path / "mine")
    out = embed(source, tmp_path / "emb.zarr", shard="1/20")
    with pytest.raises(FileExistsError, match="exists already; choose another name, or go on with it by resume=True"):
        embed(source, out, resume=False)


SMALL_DISK = """
set -e
mount -t tmpfs -o size=4m tmpfs {disk}
{run} --shard 1/4
dd if=/dev/zero of={disk}/fill bs=4k 2>/dev/null || true
truncate -s -160K {disk}/fill
{run} && exit 99
truncate -s -140K {disk}/fill
{run} && exit 99
cp -r {disk}/emb.zarr {out}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system of its own")
def test_a_full_disk_keeps_earlier_shards(source: Path, tmp_path: Path, expected: np.ndarray) -> None:
    (tmp_path / "disk").mkdir()
    run = f"{sys.executable} -m scfm embed-store {source} --model scfm-mini --out {tmp_path}/disk/emb.zarr"
    script = SMALL_DISK.format(disk=tmp_path / "disk", run=f"{run} --shard-rows 64 --device cpu", out=tmp_path)
    may_mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "disk")]
    if shutil.which("unshare") is None or subprocess.run(may_mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    full = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert full.returncode == 0, full.stderr
    early, late = (line for line in full.stderr.splitlines() if line.startswith("scfm: OSError"))
    assert re.search(r"emb.zarr has 163,840 bytes free, and \d+,\d+ are needed: make room there", early)
    assert "[Errno 28]" in late
    out, store = tmp_path / "emb.zarr", ShardStore.open(tmp_path / "emb.zarr")
    assert 2 <= len(store.done()) < len(store.shards)
    for number in store.done():
        rows = slice(store.shards[number].start, store.shards[number].stop)
        np.testing.assert_array_equal(values(out)[rows], expected[rows])
    embed(source, out)
    np.testing.assert_array_equal(values(out), expected)


def test_an_interruption_says_how_far_it_got(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "emb.zarr"
    call = ["embed-store", str(source), "--model", "scfm-mini", "--out", str(out), "--device", "cpu"]
    with subprocess.Popen([sys.executable, "-m", "scfm", *call, "--shard-rows", "8"], stderr=subprocess.PIPE) as run:
        while run.poll() is None and not (out.exists() and ShardStore.open(out).done()):
            time.sleep(0.005)
        run.send_signal(signal.SIGINT)
        text = run.communicate()[1].decode()
    assert run.returncode == 130
    assert re.search(rf"{out}: \d+ of 88 shards, [\d,]+ of 700 cells.*The same command goes on with it", text)
