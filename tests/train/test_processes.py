"""Several processes, and processes that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from scipy import sparse

import scfm
from tests.train.conftest import GENES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("lightning")


def command(config: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    words = [
        sys.executable,
        "-m",
        "scfm",
        "pretrain",
        "--config",
        str(folder / "run.yaml"),
        "--out",
        str(folder / "model"),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "SCFM_PROGRESS": "false"}
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_equal_one(config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run = config(objectives={"masked_genes": {}}, optimiser={"warmup": 0})
    with command({**run, "machine": {**run["machine"], "devices": 2}}, tmp_path) as two:
        said, _ = two.communicate(timeout=300)
    assert two.returncode == 0, said
    one = load_file(scfm.train.pretrain(config=run, out=tmp_path / "one") / "model.safetensors")  # type: ignore[operator]
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == one.keys()
    for name, values in one.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, rtol=0, err_msg=name)


def test_a_process_without_anything_to_predict_takes_part(
    config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    counts = np.zeros((24, 60), np.float32)
    counts[0] = 1.0  # the only cell with a gene, so that most steps of a process have no tokens
    cells = ad.AnnData(sparse.csr_matrix(counts))
    cells.var_names = GENES
    cells.write_h5ad(tmp_path / "sparse.h5ad")
    run = config(
        files=[str(tmp_path / "sparse.h5ad")],
        steps=12,
        sampling={"batch_cells": 2},
        objectives={"masked_genes": {}},
        validation={"cells": 2},
    )
    with command({**run, "machine": {**run["machine"], "devices": 2}}, tmp_path) as two:
        said, _ = two.communicate(timeout=120)
    assert two.returncode == 0, said
    values = load_file(tmp_path / "model" / "model.safetensors")
    assert all(np.isfinite(one).all() for one in values.values())


@pytest.mark.attack
def test_a_killed_run_goes_on_as_if_it_had_not_been(config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run = config(steps=60, checkpoint_every=2, architecture={"dropout": 0.1})
    expected = load_file(scfm.train.pretrain(config=run, out=tmp_path / "whole") / "model.safetensors")  # type: ignore[operator]
    checkpoints = tmp_path / "model.training" / "checkpoints"
    kills = 0
    while not (tmp_path / "model").exists():
        with command(run, tmp_path) as process:
            before = set(checkpoints.glob("newest-*"))
            while process.poll() is None and kills < 3 and not set(checkpoints.glob("newest-*")) - before:
                time.sleep(0.01)
            if process.poll() is None and kills < 3:
                process.send_signal(signal.SIGKILL)
                kills += 1
            said, _ = process.communicate(timeout=300)
            assert process.returncode in (0, -signal.SIGKILL), said
    print(f"killed {kills} times")
    assert kills
    found = load_file(tmp_path / "model" / "model.safetensors")
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
