"""A model of another package: installed, listed, embedded, given options, and run from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

PACKAGE = Path(__file__).parent / "example_package"
CODE = """
import json, sys, numpy as np, scfm
adata = scfm.datasets.synthetic(20, 40, genes_per_cell=8)
adata.var_names = [f"ENSG{i:011d}" for i in range(1, 41)]
scfm.tl.embed(adata, model="bog", scale=2.0, device="cpu")
adata.write_h5ad(sys.argv[1])
params = adata.uns["bag"]["params"]
print(json.dumps({
    "listed": scfm.model.list_models().loc["bag-of-genes"].to_dict(),
    "model": params["model"],
    "options": params["options"],
    "matched": scfm.pp.match_genes(adata, "bag-of-genes").matched,
}, default=str))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built and installed by pip into a folder of its own."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(PACKAGE)], check=True)
    return folder


def run(installed: Path, cache: Path, *arguments: str) -> str:
    paths = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    env = {**os.environ, "PYTHONPATH": paths, "SCFM_CACHE_DIR": str(cache)}
    return subprocess.run([sys.executable, *arguments], env=env, check=True, capture_output=True, text=True).stdout


def test_it_is_a_model_like_any_other(installed: Path, tmp_path: Path) -> None:
    found: dict[str, Any] = json.loads(run(installed, tmp_path / "cache", "-c", CODE, str(tmp_path / "a.h5ad")))
    assert found["listed"]["family"] == "bag"
    assert found["model"] == "bag-of-genes"
    assert found["options"] == {"scale": 2.0}
    assert found["matched"] == 30
    adata = ad.read_h5ad(tmp_path / "a.h5ad")
    vectors = np.random.default_rng(0).standard_normal((30, 4)).astype("f4")
    known = adata[:, :30].X.toarray() > 0
    expected = 2 * (known @ vectors) / known.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(adata.obsm["X_bag"], expected, atol=1e-5)


def test_the_command_line_knows_it(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path / "cache", "-c", CODE, str(tmp_path / "a.h5ad"))
    assert "bag-of-genes" in run(installed, tmp_path / "cache", "-m", "scfm", "models")
    assert "--scale" in run(installed, tmp_path / "cache", "-m", "scfm", "embed", "--help")
    call = ["embed", str(tmp_path / "a.h5ad"), "--model", "bog", "--out", str(tmp_path / "b.h5ad"), "--scale", "3"]
    run(installed, tmp_path / "cache", "-m", "scfm", *call, "--key-added", "three", "--device", "cpu")
    found = ad.read_h5ad(tmp_path / "b.h5ad")
    np.testing.assert_allclose(found.obsm["three"], found.obsm["X_bag"] * 1.5, rtol=1e-6)
    assert "bag-of-genes" in run(installed, tmp_path / "cache", "-m", "scfm", "cache")
