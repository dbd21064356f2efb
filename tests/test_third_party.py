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

from scfm.testing._contract import RULES

NOT_OFFERED = ("linear layers", "genes", "scores", "masked genes")
PACKAGE = Path(__file__).parent / "example_package"
CODE = """
import contextlib, io, json, sys, numpy as np, scfm
from scfm.cli import main
before, after = sys.argv[1:]

def said(*arguments):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*arguments])
    return text.getvalue()

adata = scfm.datasets.synthetic(20, 40, genes_per_cell=8)
adata.var_names = [f"ENSG{i:011d}" for i in range(1, 41)]
scfm.tl.embed(adata, model="bog", scale=2.0, device="cpu")
adata.write_h5ad(before)
params = adata.uns["bag"]["params"]
said("embed", before, "--model", "bog", "--out", after, "--scale", "3", "--key-added", "three", "--device", "cpu")
print(json.dumps({
    "listed": scfm.model.list_models().loc["bag-of-genes"].to_dict(),
    "model": params["model"],
    "options": params["options"],
    "matched": scfm.pp.match_genes(adata, "bag-of-genes").matched,
    "checked": scfm.testing.check_model(scfm.model.load("bog"), scale=2.0),
    "said": {"models": said("models"), "cache": said("cache"), "help": said("embed", "--help")},
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def found(installed: Path, folder: Path) -> dict[str, Any]:
    """What a process says that finds the package beside scfm."""
    paths = [str(installed), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SCFM_CACHE_DIR": str(folder / "cache")}
    call = [sys.executable, "-c", CODE, str(folder / "a.h5ad"), str(folder / "b.h5ad")]
    return json.loads(subprocess.run(call, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)


def test_it_is_a_model_like_any_other(found: dict[str, Any], folder: Path) -> None:
    assert found["listed"]["family"] == "bag"
    assert found["model"] == "bag-of-genes"
    assert found["options"] == {"scale": 2.0}
    assert found["matched"] == 30
    assert found["checked"] == [rule for rule in RULES if rule not in NOT_OFFERED]
    adata = ad.read_h5ad(folder / "a.h5ad")
    vectors = np.random.default_rng(0).standard_normal((30, 4)).astype("f4")
    known = adata[:, :30].X.toarray() > 0
    expected = 2 * (known @ vectors) / known.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(adata.obsm["X_bag"], expected, atol=1e-5)


def test_the_command_line_knows_it(found: dict[str, Any], folder: Path) -> None:
    assert "bag-of-genes" in found["said"]["models"]
    assert "bag-of-genes" in found["said"]["cache"]
    assert "--scale" in found["said"]["help"]
    embedded = ad.read_h5ad(folder / "b.h5ad")
    np.testing.assert_allclose(embedded.obsm["three"], embedded.obsm["X_bag"] * 1.5, rtol=1e-6)
