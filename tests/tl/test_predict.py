"""tl.predict: what it stores where, on what, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from anndata.tests.helpers import assert_equal
from scipy import sparse

import scfm
from scfm.testing import write_geneformer

from ..train.supervised.conftest import KINDS, N_GENES, make_cells

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("scvi")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:.*zarr v[23]:UserWarning",  # of anndata about the format it writes by default
        "ignore:From 0.4:FutureWarning",  # of mudata about its next release
        "ignore:Cannot join columns:UserWarning",
    ),
]
HOW: dict[str, Any] = {"max_epochs": 6, "lr": 5e-3, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> scfm.model.FoundationModel:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return scfm.model.load(write_geneformer(folder, n_genes=N_GENES, n_layers=2, max_tokens=48))


@pytest.fixture(scope="module")
def kinds(tiny: scfm.model.FoundationModel) -> Any:
    """A model that was trained on ``obs["kind"]``."""
    adata = make_cells()
    scfm.train.CellClassifier.setup_anndata(adata, "kind")
    model = scfm.train.CellClassifier(adata, tiny)
    model.train(**HOW)
    return model


@pytest.fixture(scope="module")
def several(tiny: scfm.model.FoundationModel) -> Any:
    """A model of labels and numbers."""
    adata = make_cells()
    scfm.train.MultiTaskClassifier.setup_anndata(adata, ["kind", "age"])
    model = scfm.train.MultiTaskClassifier(adata, tiny)
    model.train(**HOW)
    return model


@pytest.fixture(scope="module")
def ages(tiny: scfm.model.FoundationModel) -> Any:
    adata = make_cells()
    scfm.train.CellRegressor.setup_anndata(adata, "age")
    model = scfm.train.CellRegressor(adata, tiny)
    model.train(**HOW)
    return model


@pytest.fixture
def new() -> ad.AnnData:
    """Cells that were not trained on, with a name of their own for what is to be found."""
    adata = make_cells(30, seed=1)
    adata.obs = adata.obs.rename(columns={"kind": "true"})
    return adata


def read(path: Path) -> ad.AnnData:
    if path.suffix == ".h5mu":
        return md.read_h5mu(path)["rna"]
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def write(adata: ad.AnnData, path: Path) -> Path:
    if path.suffix == ".h5mu":
        md.MuData({"rna": adata}).write_h5mu(path)
    else:
        adata.write_h5ad(path) if path.suffix == ".h5ad" else adata.write_zarr(path)
    return path


def test_fields(kinds: Any, new: ad.AnnData, tmp_path: Path) -> None:
    before = new.copy()
    assert scfm.tl.predict(new, kinds) is None
    assert (new.obs["prediction"].astype(str) == new.obs["true"].astype(str)).mean() > 0.9
    assert list(new.obs["prediction"].cat.categories) == list(KINDS)
    probabilities = new.obsm["prediction_probabilities"]
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (30, 3))
    assert new.obs["prediction_score"].dtype == np.float32
    np.testing.assert_array_equal(new.obs["prediction_score"], probabilities.max(axis=1))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    params = new.uns["prediction"]["params"]
    np.testing.assert_array_equal(params["labels"][probabilities.argmax(axis=1)], new.obs["prediction"].astype(str))
    assert (params["function"], params["class"], params["family"]) == (
        "scfm.tl.predict",
        "CellClassifier",
        "geneformer",
    )
    table = kinds.predict(before)
    np.testing.assert_array_equal(table["label"].astype(str), new.obs["prediction"].astype(str))
    np.testing.assert_array_equal(table.iloc[:, 2:], probabilities)
    pd.testing.assert_frame_equal(new.obs[before.obs.columns], before.obs)
    assert (new.X != before.X).nnz == 0
    assert set(new.uns) == {"prediction"}
    for path in (tmp_path / "a.h5ad", tmp_path / "a.zarr"):
        found = read(write(new, path))
        assert list(found.uns["prediction"]["params"]["labels"]) == list(KINDS)
        pd.testing.assert_series_equal(found.obs["prediction"], new.obs["prediction"])


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_predicts_as_the_model(
    kinds: Any, tiny: scfm.model.FoundationModel, new: ad.AnnData, tmp_path: Path, *, whole: bool
) -> None:
    if whole:
        kinds.save(tmp_path / "model")
        folder: Any = str(tmp_path / "model")
    else:  # the base is no model of a known name, so it has to be named
        kinds.save(tmp_path / "model", whole=False)
        folder = scfm.train.CellClassifier.load(tmp_path / "model", base=tiny)
    found: Any = scfm.tl.predict(new, folder, copy=True)
    scfm.tl.predict(new, kinds)
    np.testing.assert_allclose(found.obsm["prediction_probabilities"], new.obsm["prediction_probabilities"], atol=1e-6)
    assert found.obs["prediction"].tolist() == new.obs["prediction"].tolist()


def test_a_copy(kinds: Any, new: ad.AnnData) -> None:
    before = new.copy()
    found: Any = scfm.tl.predict(new, kinds, copy=True, key_added="mine")
    assert {"mine", "mine_score"} <= set(found.obs)
    assert_equal(new, before)


def test_its_own_result_is_replaced_and_nothing_of_it_stays(kinds: Any, ages: Any, new: ad.AnnData) -> None:
    scfm.tl.predict(new, kinds)
    scfm.tl.predict(new, kinds, threshold=0.5)
    scfm.tl.predict(new, ages)
    assert new.obs["prediction"].dtype == np.float32
    assert np.corrcoef(new.obs["prediction"], new.obs["age"])[0, 1] > 0.8
    assert "prediction_score" not in new.obs
    assert "prediction_probabilities" not in new.obsm
    assert new.uns["prediction"]["params"]["class"] == "CellRegressor"
    assert "labels" not in new.uns["prediction"]["params"]


@pytest.mark.parametrize("place", ["label", "score", "probabilities", "uns"])
def test_what_is_not_its_own_is_kept(place: str, kinds: Any, new: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == "uns":
        new.uns["prediction"], name = {"mine": 1}, r"uns\['prediction'\]"
    elif place == "probabilities":
        new.obsm["prediction_probabilities"] = np.ones((30, 2))
        name = r"obsm\['prediction_probabilities'\]"
    else:
        column = "prediction" if place == "label" else "prediction_score"
        new.obs[column], name = 1, rf"obs\['{column}'\]"
    before = new.copy()
    monkeypatch.setattr(kinds, "predictions", None)  # nothing is computed before it is found out
    with pytest.raises(ValueError, match=rf"would overwrite {name}, which scfm.tl.predict did not write"):
        scfm.tl.predict(new, kinds)
    assert_equal(new, before)


def test_several_columns(several: Any, new: ad.AnnData) -> None:
    scfm.tl.predict(new, several, key_added="found")
    assert (new.obs["found_kind"].astype(str) == new.obs["true"].astype(str)).mean() > 0.8
    assert new.obsm["found_kind_probabilities"].shape == (30, 3)
    assert new.obs["found_age"].dtype == np.float32
    assert "found_age_score" not in new.obs
    assert {"found_kind", "found_age"} <= set(new.uns)
    new.obs["found_kind"] = "mine"
    del new.uns["found_kind"]
    with pytest.raises(ValueError, match=r"would overwrite obs\['found_kind'\]"):
        scfm.tl.predict(new, several, key_added="found")


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr", ".h5mu"])
def test_a_file(suffix: str, kinds: Any, new: ad.AnnData, tmp_path: Path) -> None:
    source, out = write(new, tmp_path / f"in{suffix}"), tmp_path / f"out{suffix}"
    more: dict[str, Any] = {"modality": "rna"} if suffix == ".h5mu" else {}
    before = read(source)
    assert scfm.tl.predict(source, kinds, out=str(out), **more) == out
    expected = before.copy()
    scfm.tl.predict(expected, kinds)
    assert_equal(read(out), read(write(expected, tmp_path / f"expected{suffix}")))
    assert_equal(read(source), before)
    with pytest.raises(FileExistsError, match="exists already; choose another name, or pass overwrite=True"):
        scfm.tl.predict(source, kinds, out=out, **more)
    with pytest.raises(ValueError, match="Give out="):
        scfm.tl.predict(source, kinds, **more)
    scfm.tl.predict(out, kinds, out=out, overwrite=True, **more)  # its own result may be replaced
    assert_equal(read(out), read(tmp_path / f"expected{suffix}"))


def test_a_modality(kinds: Any, new: ad.AnnData) -> None:
    other = ad.AnnData(np.ones((30, 2), np.float32), obs=new.obs[[]])
    mdata = md.MuData({"rna": new.copy(), "prot": other})
    scfm.tl.predict(mdata, kinds, modality="rna")
    scfm.tl.predict(new, kinds)
    pd.testing.assert_series_equal(mdata["rna"].obs["prediction"], new.obs["prediction"])
    assert "prediction" not in mdata["prot"].obs
    with pytest.raises(ValueError, match="needs modality="):
        scfm.tl.predict(mdata, kinds)
    with pytest.raises(ValueError, match="no modality 'dna'"):
        scfm.tl.predict(mdata, kinds, modality="dna")


def test_a_threshold(kinds: Any, new: ad.AnnData) -> None:
    scfm.tl.predict(new, kinds)
    limit = float(np.median(new.obs["prediction_score"]))
    plain, scores = new.obs["prediction"].astype(str), new.obs["prediction_score"].copy()
    scfm.tl.predict(new, kinds, threshold=limit)
    low = scores < limit
    assert 0 < low.sum() < 30
    assert (new.obs["prediction"][low] == "unknown").all()
    assert (new.obs["prediction"][~low].astype(str) == plain[~low]).all()
    assert list(new.obs["prediction"].cat.categories) == [*KINDS, "unknown"]
    assert new.uns["prediction"]["params"]["threshold"] == limit
    np.testing.assert_array_equal(new.obs["prediction_score"], scores)


def test_a_cell_without_genes_has_no_label(kinds: Any, new: ad.AnnData) -> None:
    counts = new.X.toarray()
    counts[3] = 0
    new.X = sparse.csr_matrix(counts)
    with pytest.warns(UserWarning, match="1 of 30 cells"):
        scfm.tl.predict(new, kinds)
    assert new.obs["prediction"].isna().tolist() == [row == 3 for row in range(30)]
    assert np.isnan(new.obsm["prediction_probabilities"][3]).all()
    assert np.isnan(new.obs["prediction_score"].iloc[3])


def test_counts_are_read_from_where_the_training_read_them(tiny: scfm.model.FoundationModel, new: ad.AnnData) -> None:
    cells = make_cells()
    for adata in (cells, new):
        adata.layers["raw_counts"] = adata.X.copy()
        adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray()[:, ::-1]))
        adata.var["ids"], adata.var_names = adata.var_names, [f"gene {i}" for i in range(N_GENES)]
    scfm.train.CellClassifier.setup_anndata(cells, "kind", layer="raw_counts", gene_key="ids")
    model: Any = scfm.train.CellClassifier(cells, tiny)
    model.train(**HOW)
    scfm.tl.predict(new, model)
    assert (new.obs["prediction"].astype(str) == new.obs["true"].astype(str)).mean() > 0.9
    del new.layers["raw_counts"]
    with pytest.raises(ValueError, match="has no layer 'raw_counts'"):
        scfm.tl.predict(new, model)


def test_folders_and_models_that_do_not_predict_cells(
    tiny: scfm.model.FoundationModel, new: ad.AnnData, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder .*nothing"):
        scfm.tl.predict(new, tmp_path / "nothing")
    base = write_geneformer(tmp_path / "base", n_genes=N_GENES)
    with pytest.raises(ValueError, match=r"holds no trained head: give a folder of save\(\)"):
        scfm.tl.predict(new, base)
    new.obsm["X_own"] = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    scfm.train.EmbeddingClassifier.setup_anndata(new, "true", "X_own")
    heads: Any = scfm.train.EmbeddingClassifier(new)
    heads.train(max_epochs=1, lr=1e-2)
    heads.save(tmp_path / "heads")
    with pytest.raises(TypeError, match=r"is a EmbeddingClassifier, which predicts no cells from counts"):
        scfm.tl.predict(new, tmp_path / "heads")
    scfm.train.CellClassifier.setup_anndata(new, "true")
    untrained: Any = scfm.train.CellClassifier(new, tiny)
    with pytest.raises(RuntimeError, match=r"was not trained; call train\(\) before predict\(\)"):
        scfm.tl.predict(new, untrained)
    assert "prediction" not in new.obs
