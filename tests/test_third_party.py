"""Models of other packages: installed, listed, embedded, given options, and run from the command line."""

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

from scfm.testing._rules import RULES

NOT_OFFERED = {
    "bag-of-genes": ("linear layers", "genes", "scores", "masked genes", "perturbed genes"),
    "binned-values": ("linear layers", "scores", "masked genes"),
    "sampled-genes": ("genes", "scores", "masked genes", "perturbed genes"),
}
PACKAGES = [Path(__file__).parent / name for name in ("example_package", "example_binned", "example_sampled")]
CODE = """
import contextlib, io, json, sys, anndata, numpy as np, scfm
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
params = adata.uns["bag"]["params"]
calls = {"binned": {}, "sampled": {}, "other": {"seed": 1}}
apart = adata.copy()  # each gene in a second column, to be added to the first
apart.var_names += ".1"
apart = anndata.concat([adata, apart], axis="var", merge="same")
adata.X = adata.X * 2
for key, arguments in calls.items():
    model = "binned-values" if key == "binned" else "sampled-genes"
    for data in (adata, apart):
        scfm.tl.embed(data, model, key_added=key, device="cpu", **arguments)
    np.testing.assert_array_equal(adata.obsm[key], apart.obsm[key])
adata.X = adata.X / 2
try:
    scfm.tl.embed(adata, "binned-values", max_tokens=20)
except ValueError as error:
    refused = str(error)
adata.write_h5ad(before)
said("embed", before, "--model", "bog", "--out", after, "--scale", "3", "--key-added", "three", "--device", "cpu")
print(json.dumps({
    "listed": scfm.model.list_models()["family"].to_dict(),
    "model": params["model"],
    "refused": refused,
    "options": params["options"],
    "matched": scfm.pp.match_genes(adata, "bag-of-genes").matched,
    "checked": {
        "bag-of-genes": scfm.testing.check_model(scfm.model.load("bog"), scale=2.0),
        "binned-values": scfm.testing.check_model(scfm.model.load("binned-values")),
        "sampled-genes": scfm.testing.check_model(scfm.model.load("sampled-genes"), seed=3),
    },
    "said": {"models": said("models"), "cache": said("cache"), "help": said("embed", "--help")},
}, default=str))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, built and installed by pip into a folder of its own."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), *map(str, PACKAGES)], check=True)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def found(installed: Path, folder: Path) -> dict[str, Any]:
    """What a process says that finds the packages beside scfm."""
    paths = [str(installed), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SCFM_CACHE_DIR": str(folder / "cache")}
    call = [sys.executable, "-c", CODE, str(folder / "a.h5ad"), str(folder / "b.h5ad")]
    return json.loads(subprocess.run(call, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)


def test_it_is_a_model_like_any_other(found: dict[str, Any], folder: Path) -> None:
    assert found["listed"]["bag-of-genes"] == "bag"
    assert found["model"] == "bag-of-genes"
    assert found["options"] == {"scale": 2.0}
    assert found["matched"] == 30
    adata = ad.read_h5ad(folder / "a.h5ad")
    vectors = np.random.default_rng(0).standard_normal((30, 4)).astype("f4")
    known = adata[:, :30].X.toarray() > 0
    expected = 2 * (known @ vectors) / known.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(adata.obsm["X_bag"], expected, atol=1e-5)


@pytest.mark.parametrize("model", NOT_OFFERED)
def test_it_keeps_every_rule_about_what_it_offers(found: dict[str, Any], model: str) -> None:
    assert model in found["listed"]
    assert found["checked"][model] == [rule for rule in RULES if rule not in NOT_OFFERED[model]]


def test_values_travel_beside_the_tokens(found: dict[str, Any], folder: Path) -> None:
    adata = ad.read_h5ad(folder / "a.h5ad")
    vectors = np.random.default_rng(0).standard_normal((30 + 5, 4)).astype("f4")
    for counts, embedding in zip(adata[:, :30].X.toarray(), adata.obsm["binned"], strict=True):
        genes = np.flatnonzero(counts)
        edges = np.quantile(counts[genes], [0.2, 0.4, 0.6, 0.8])
        states = [vectors[gene] * vectors[30 + sum(counts[gene] > edges)] for gene in genes]
        np.testing.assert_allclose(embedding, np.mean(states, axis=0), atol=1e-5)


def test_a_model_of_all_genes_takes_no_max_tokens(found: dict[str, Any]) -> None:
    assert "binned-values reads all genes of a cell" in found["refused"]


def test_another_seed_draws_other_genes(found: dict[str, Any], folder: Path) -> None:
    embeddings = ad.read_h5ad(folder / "a.h5ad").obsm
    same = np.isclose(embeddings["sampled"], embeddings["other"]).all(axis=1)
    assert same.mean() < 0.2  # few genes may be drawn equally often by chance


def test_the_command_line_knows_it(found: dict[str, Any], folder: Path) -> None:
    assert "bag-of-genes" in found["said"]["models"]
    assert "bag-of-genes" in found["said"]["cache"]
    assert "--scale" in found["said"]["help"]
    embedded = ad.read_h5ad(folder / "b.h5ad")
    np.testing.assert_allclose(embedded.obsm["three"], embedded.obsm["X_bag"] * 1.5, rtol=1e-6)
