"""Screens of files into stores: the effects of the verb in memory, interrupted, shared, refused."""

from __future__ import annotations

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
import pandas as pd
import pytest

import scfm
from scfm.cli import main
from scfm.run.store import ShardStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

N_CELLS, ROWS = 24, 5
STATES = {"states_key": "bulk_labels", "start": "CD19+ B", "goal": "CD56+ NK", "alternatives": ["CD34+"]}
SCREEN = STATES | {"gene_effects": True}
CALL = (
    "import scfm, sys, torch; torch.set_num_threads(1); "
    f"scfm.tl.perturb_store(sys.argv[1], 'scfm-mini', sys.argv[2], shard_rows={ROWS}, device='cpu', **{SCREEN})"
)
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding", "ignore:Consolidated metadata", "ignore:Writing zarr v2"),
]


@pytest.fixture(scope="module")
def model() -> Any:
    return scfm.model.load("scfm-mini")


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Some cells with some of their genes; those of the start state are neither the first nor the last ones."""
    whole = scfm.datasets.pbmc68k()
    labels = whole.obs["bulk_labels"].astype(str)
    rows = [np.flatnonzero(labels == name)[: N_CELLS // 3] for name in ("CD56+ NK", "CD19+ B", "CD34+")]
    columns = whole.var_names.isin(["CD74", "CD79A", "CD79B"]) | (np.arange(whole.n_vars) % 25 == 0)
    picked = whole[np.concatenate(rows)].copy()[:, columns]
    return ad.AnnData(picked.X, picked.obs, picked.var)


@pytest.fixture(scope="module")
def source(cells: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def expected(source: Path, model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Content of a store that nothing disturbed."""
    return content(perturb(source, model, tmp_path_factory.mktemp("expected") / "screen.zarr", **SCREEN))


def perturb(source: Any, model: Any, out: Path, **arguments: Any) -> Path:
    return scfm.tl.perturb_store(source, model, out, **{"shard_rows": ROWS, "device": "cpu"} | arguments)


def read(path: Path) -> ad.AnnData:
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


def content(store: Path) -> dict[str, bytes]:
    """All files of a store but locks."""
    files = [path for path in store.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def check_equal(found: ad.AnnData, expected: ad.AnnData, key: str = "perturb", n_files: int = 1) -> None:
    """The same fields with the same values, but for rounding; ``params`` are of all files."""
    assert {slot: sorted(getattr(found, slot)) for slot in ("layers", "obsm", "varm", "varp", "obs")} == {
        slot: sorted(getattr(expected, slot)) for slot in ("layers", "obsm", "varm", "varp", "obs")
    }
    for name, layer in expected.layers.items():
        assert found.layers[name].dtype == layer.dtype == np.float32
        np.testing.assert_array_equal(found.layers[name].indptr, layer.indptr)
        np.testing.assert_array_equal(found.layers[name].indices, layer.indices)
        np.testing.assert_allclose(found.layers[name].data, layer.data, atol=2e-6)
    for slot in ("obsm", "varm"):
        for name, table in getattr(expected, slot).items():
            pd.testing.assert_frame_equal(getattr(found, slot)[name], table, atol=2e-6, rtol=0, check_names=False)
    for name, matrix in expected.varp.items():
        assert found.varp[name].dtype == matrix.dtype
        np.testing.assert_allclose(found.varp[name].toarray(), matrix.toarray(), atol=2e-6)
    np.testing.assert_array_equal(found.obs[f"{key}_n"], expected.obs[f"{key}_n"])
    assert found.obs[f"{key}_n"].dtype == expected.obs[f"{key}_n"].dtype
    stored, wanted = found.uns[key], expected.uns[key]
    assert stored.keys() == wanted.keys()
    assert stored["params"].keys() == wanted["params"].keys() | ({"files"} if n_files > 1 else set())
    for name in ("n_cells", "n_cells_perturbed", "kind", "n_cells_empty", "function", "anchor") if n_files == 1 else ():
        assert str(stored["params"][name]) == str(wanted["params"][name])
    if "states" in wanted:
        pd.testing.assert_frame_equal(stored["states"], wanted["states"], check_names=False)


CASES: dict[str, dict[str, Any]] = {
    "all genes": {},
    "states": STATES,
    "some cells": STATES | {"n_cells": 3, "seed": 1},
    "groups": {"genes": {"pair": ["CD74", "CD79A"], "CD74": ["CD74"], "absent": ["PAX5"]}, "kind": "overexpress"},
    "an anchor": {"genes": ["CD74", "CD79B"], "anchor": "CD79A", "gene_effects": True} | STATES,
    "effects on genes": {"gene_effects": True},
}


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("case", CASES)
def test_merged_it_is_what_the_verb_in_memory_gives(
    case: str, kind: str, cells: ad.AnnData, model: Any, tmp_path: Path
) -> None:
    source = tmp_path / f"cells.{kind}"
    getattr(cells, f"write_{kind}")(source)
    expected = read(source)
    scfm.tl.perturb(expected, model, device="cpu", **CASES[case])
    out = perturb(source, model, tmp_path / "screen.zarr", **CASES[case])
    assert scfm.tl.merge_store(out, source) == source
    check_equal(read(source), expected)


@pytest.mark.parametrize("number", [0, 4, 8])
def test_after_a_stop_the_same_call_gives_the_same_bytes(
    number: int, source: Path, model: Any, tmp_path: Path, stop_at: Callable[..., Any], expected: dict[str, bytes]
) -> None:
    out, stopped = tmp_path / "screen.zarr", stop_at(number, dead=True)
    with pytest.raises(KeyboardInterrupt):
        perturb(source, model, out, **SCREEN)
    assert stopped()
    assert content(perturb(source, model, out, **SCREEN)) == expected


def test_kill_at_random_moments(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    out, rng = tmp_path / "screen.zarr", random.Random(0)
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", CALL, str(source), str(out)]) as process:
            had = len(list(out.glob("obsm/*/.shards/*.json")))
            while process.poll() is None and len(list(out.glob("obsm/*/.shards/*.json"))) <= had:
                time.sleep(0.005)
            time.sleep(rng.random() * 0.1)
            process.send_signal(signal.SIGKILL)
    subprocess.run([sys.executable, "-c", CALL, str(source), str(out)], check=True)
    assert content(out) == expected


def test_two_processes_fill_one_store(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    out = tmp_path / "screen.zarr"
    calls = [CALL.replace("**", f"shard='{part}/2', **") for part in (1, 2)]
    processes = [subprocess.Popen([sys.executable, "-c", call, str(source), str(out)]) for call in calls]
    assert [process.wait() for process in processes] == [0, 0]
    assert not ShardStore.open(out).missing()
    assert content(out) == expected


def test_a_dask_cluster(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    distributed = pytest.importorskip("distributed")
    out, cluster = tmp_path / "screen.zarr", {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(**cluster) as local, distributed.Client(local) as client:
        perturb(source, "scfm-mini", out, client=client, **SCREEN)
    assert content(out) == expected


def test_two_files_are_as_if_each_were_alone(cells: ad.AnnData, model: Any, tmp_path: Path) -> None:
    first, second = cells[:14].copy(), cells[14:, ::-2].copy()
    second.var["symbol"] = second.var_names
    second.var_names = [f"gene{i}" for i in range(second.n_vars)]
    files = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for adata, file in zip((first, second), files, strict=True):
        adata.write_h5ad(file)
    chosen: dict[str, Any] = {"genes": ["CD74", "CD79A", ("CD74", "CD79A")], "kind": "activate"}
    perturb(files, model, tmp_path / "all.zarr", into_source=True)
    perturb(files, model, tmp_path / "chosen.zarr", into_source=True, key_added="chosen", **chosen)
    for adata, file in zip((first, second), files, strict=True):
        scfm.tl.perturb(adata, model, device="cpu")
        scfm.tl.perturb(adata, model, device="cpu", key_added="chosen", **chosen)
        found = ad.read_h5ad(file)
        check_equal(found, adata, n_files=2)
        check_equal(found, adata, "chosen", n_files=2)
    with pytest.raises(ValueError, match="gene_effects=True takes one file.* got 2"):
        perturb(files, model, tmp_path / "no.zarr", gene_effects=True)


def test_what_is_known_once_is_not_computed_again(
    source: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, bytes]
) -> None:
    out = perturb(source, model, tmp_path / "screen.zarr", shard="2/2", **SCREEN)
    monkeypatch.setattr("scfm.tl._perturb_store.average_states", lambda *_: pytest.fail("averaged again"))
    monkeypatch.setattr("scfm.tl._screen.Screen.counts", lambda *_: pytest.fail("counted again"))
    assert content(perturb(source, model, out, **SCREEN)) == expected


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "inhibit"}, "kind was 'delete' and is 'inhibit'"),
        ({"genes": ["CD74"]}, "genes"),
        ({"goal": "CD34+", "alternatives": None}, "goal was 'CD56. NK' and is 'CD34.'"),
        ({"state_average": "median"}, "state_average was 'mean' and is 'median'"),
        ({"n_cells": 2}, "n_cells was None and is 2"),
        ({"max_tokens": 30}, "max_tokens was .* and is 30"),
        ({"key_added": "other"}, "key_added"),
        ({"shard_rows": 6}, "shard_rows"),
    ],
)
def test_other_arguments_are_refused(
    change: dict[str, Any], match: str, source: Path, model: Any, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "screen.zarr"
    for name, text in expected.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(text)
    with pytest.raises(FileExistsError, match=match):
        perturb(source, model, out, **SCREEN | change)
    assert content(out) == expected


def test_stores_of_another_verb_and_other_genes_are_refused(
    cells: ad.AnnData, source: Path, model: Any, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    embedded = scfm.tl.embed_store(source, model, tmp_path / "emb.zarr", device="cpu")
    with pytest.raises(FileExistsError, match="holds results of scfm.tl.embed_store"):
        perturb(source, model, embedded)
    out = perturb(source, model, tmp_path / "screen.zarr", genes=["CD74"])
    other = cells[:, ::-1].copy()
    other.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(ValueError, match="has other genes than the file that was perturbed; nothing was changed"):
        scfm.tl.merge_store(out, tmp_path / "other.h5ad")
    with pytest.raises(ValueError, match="None of the 24 cells expresses the genes"):
        perturb(source, model, tmp_path / "no.zarr", genes=["PAX5"])
    assert not (tmp_path / "no.zarr").exists()


def test_merging_removes_what_an_earlier_run_left(source: Path, model: Any, tmp_path: Path) -> None:
    copy = tmp_path / "cells.h5ad"
    shutil.copy(source, copy)
    scfm.tl.perturb(copy, model, genes=["CD74", "CD79A"], out=copy, overwrite=True, device="cpu")
    assert "perturb" in ad.read_h5ad(copy).layers
    out = perturb(copy, model, tmp_path / "screen.zarr", genes={"both": ["CD74", "CD79A"]}, into_source=True)
    found = ad.read_h5ad(copy)
    assert not found.layers
    assert scfm.get.perturb_df(found, table="raw")["names"].unique().tolist() == ["both"]
    assert out.is_dir()


def test_the_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy, out = tmp_path / "cells.h5ad", tmp_path / "screen.zarr"
    shutil.copy(source, copy)
    call = ["perturb-store", str(copy), "--model", "scfm-mini", "--out", str(out), "--device", "cpu"]
    call += ["--genes", "CD74", "CD74+CD79A", "--shard-rows", "10"]
    assert main([*call, "--shard", "1/3"]) == 0
    assert main(["status", str(out)]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"{out}: 1 of 3 shards, \d+ of \d+ sequences; missing shards 1, 2", text)
    assert main(call) == 0
    assert main(["merge", str(out), str(copy)]) == 0
    assert f"added the results of {out} to {copy}" in capsys.readouterr().out
    found = ad.read_h5ad(copy)
    assert found.obsm["perturb"].columns.tolist() == ["CD74+CD79A"]
    assert found.layers["perturb"].nnz == (found[:, "CD74"].X.toarray() > 0).sum()
