"""Several processes, and data in other containers and files: the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy import sparse

from scfm.testing import write_geneformer
from scfm.train import CellClassifier, CellRegressor, EmbeddingClassifier

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData

    from scfm.model import FoundationModel

SCRIPT = """
import sys
import anndata
from scfm.train import CellClassifier

data, base, out, devices = sys.argv[1:]
cells = anndata.read_h5ad(data)
CellClassifier.setup_anndata(cells, "kind")
model = CellClassifier(cells, base, dropout=0.0, freeze=0)
model.train(2, lr=5e-3, batch_size=32, accelerator="cpu", devices=int(devices), strategy="ddp" if devices != "1" else "auto",
            train_size=0.6, validation_size=VALIDATION, batch_tokens=400)
if int(__import__("os").environ.get("LOCAL_RANK", 0)) == 0:
    model.save(out)
"""


def run(cells: AnnData, folder: Path, out: Path, devices: int, validation: float) -> None:
    script = out.with_suffix(".py")
    script.write_text(SCRIPT.replace("VALIDATION", str(validation)))
    cells.write_h5ad(out.with_suffix(".h5ad"))
    words = [sys.executable, str(script), str(out.with_suffix(".h5ad")), str(folder), str(out), str(devices)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SCFM_PROGRESS": "false"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_two_processes_equal_one(cells: AnnData, tmp_path: Path) -> None:
    validation = 0.02  # so a process has no cell to validate with
    base = write_geneformer(tmp_path / "base", n_genes=cells.n_vars, n_layers=2, max_tokens=48)
    for devices in (1, 2):
        run(cells, base, tmp_path / f"by {devices}", devices, validation)
    for name in ("model.safetensors", "head.safetensors"):
        one, two = (load_file(tmp_path / f"by {devices}" / name) for devices in (1, 2))
        assert one.keys() == two.keys()
        for key, values in one.items():
            if key.endswith("key.bias"):  # has no gradient but rounding errors, since softmax does not see it
                continue
            torch.testing.assert_close(two[key], values, atol=1e-5, rtol=0, msg=key)


def as_h5ad(cells: AnnData, folder: Path) -> Any:
    cells.write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def as_backed(cells: AnnData, folder: Path) -> Any:
    return ad.read_h5ad(as_h5ad(cells, folder), backed="r")


def as_zarr(cells: AnnData, folder: Path) -> Any:
    cells.write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def as_dask(cells: AnnData, folder: Path) -> Any:
    array = pytest.importorskip("dask.array")
    lazy = cells.copy()
    lazy.X = array.from_array(cells.X.toarray(), chunks=(17, -1))
    return lazy


def as_h5mu(cells: AnnData, folder: Path) -> Any:
    with mudata.set_options(pull_on_update=False):
        as_mudata(cells, folder).write(folder / "cells.h5mu")
    return folder / "cells.h5mu"


def as_mudata(cells: AnnData, folder: Path) -> Any:
    other = ad.AnnData(np.ones((cells.n_obs, 2), np.float32), obs=cells.obs[[]].copy())
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData({"rna": cells.copy(), "protein": other})


def as_layer(cells: AnnData, folder: Path) -> Any:
    moved = cells.copy()
    moved.layers["counts"], moved.X = moved.X.copy(), None
    return moved


def as_half(cells: AnnData, folder: Path) -> Any:
    half = cells.copy()
    half.X = half.X.toarray().astype(np.float16)
    return half


PLACES: dict[Callable[..., Any], dict[str, Any]] = {
    as_h5ad: {},
    as_backed: {},
    as_zarr: {},
    as_dask: {},
    as_h5mu: {"modality": "rna"},
    as_mudata: {"modality": "rna"},
    as_layer: {"layer": "counts"},
    as_half: {},
}


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_all_containers_train_alike(place: Any, cells: AnnData, tiny: FoundationModel, tmp_path: Path) -> None:
    how: dict[str, Any] = {"max_epochs": 1, "lr": 5e-3, "accelerator": "cpu", "train_size": 0.8}
    CellClassifier.setup_anndata(cells, "kind", donors_key="donor")
    inside: Any = CellClassifier(cells, tiny, freeze=1)
    inside.train(**how)
    data = place(cells, tmp_path)
    CellClassifier.setup_anndata(data, "kind", donors_key="donor", **PLACES[place])
    model: Any = CellClassifier(data, tiny, freeze=1)
    model.train(**how)
    found = model.module.state_dict()
    for name, one in inside.module.state_dict().items():
        assert torch.equal(one, found[name]), name
    given = model.predict()
    assert (given.iloc[:, 1:] == inside.predict().iloc[:, 1:]).all().all()
    assert given.index.equals(cells.obs_names)


def test_steps_that_are_too_small_for_the_processes(cells: AnnData) -> None:
    from scfm.train.supervised.data import SupervisedData
    from scfm.train.supervised.inputs import VectorInputs
    from scfm.train.supervised.split import Split

    class Trainer:
        current_epoch, world_size, global_rank = 0, 2, 0

    inputs = VectorInputs(np.zeros((5, 2), np.float32), {"kind": np.zeros(5, np.int64)})
    data = SupervisedData(inputs, inputs, Split.of(np.arange(5), np.arange(0), np.arange(0)), batch_size=1)
    data.trainer = Trainer()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="batch_size=1 makes steps of 1 cells, too few for 2 processes"):
        data.train_dataloader()


def test_matrices_that_are_no_arrays_are_embeddings(cells: AnnData) -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(cells.n_obs, 4)).astype(np.float32)
    dense[np.arange(cells.n_obs), np.arange(cells.n_obs) % 3] += 5
    forms = {
        "dense": dense,
        "double": dense.astype(np.float64),
        "sparse": sparse.csr_matrix(dense),
        "table": pd.DataFrame(dense, index=cells.obs_names),
    }
    found = []
    for name, form in forms.items():
        cells.obsm[name] = form
        EmbeddingClassifier.setup_anndata(cells, "kind", name)
        model = EmbeddingClassifier(cells)
        model.train(2, lr=0.02, accelerator="cpu")
        found.append(model.predict().iloc[:, 1:].to_numpy())
    assert all((one == found[0]).all() for one in found)


def test_numbers_that_float32_does_not_tell_apart(cells: AnnData, tiny: FoundationModel) -> None:
    models = []
    for shift in (0.0, 1.7e9):
        cells.obs["when"] = cells.obs["age"] + shift
        CellRegressor.setup_anndata(cells, "when")
        model: Any = CellRegressor(cells, tiny, freeze=True)
        model.train(2, lr=5e-3, accelerator="cpu", train_size=0.8)
        models.append(model)
    first, second = (model.history["validation_loss"].to_numpy(float) for model in models)
    np.testing.assert_allclose(first, second, rtol=1e-3)
