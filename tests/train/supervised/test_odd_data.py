"""Odd data: cells without genes, rare classes, numbers that are all the same, names that clash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import sparse

from scfm.train import (
    CellClassifier,
    CellRegressor,
    GeneClassifier,
    MultiTaskClassifier,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm.model import FoundationModel

FAST: dict[str, Any] = {"max_epochs": 1, "lr": 5e-3, "accelerator": "cpu"}


def classifier(cells: AnnData, tiny: FoundationModel, *, donors: str | None = None, **arguments: Any) -> Any:
    CellClassifier.setup_anndata(cells, "kind", donors_key=donors)
    return CellClassifier(cells, tiny, **arguments)


@pytest.mark.filterwarnings("ignore:6 of 96 cells hold no gene of the model")
def test_cells_without_genes_have_no_label(cells: AnnData, tiny: FoundationModel) -> None:
    counts = cells.X.toarray()
    counts[:6] = 0
    cells.X = sparse.csr_matrix(counts)
    model = classifier(cells, tiny, freeze=True)
    model.train(train_size=0.6, validation_size=0.2, **FAST)
    found = model.predict()
    crossed = model.cross_validate(3, **FAST)
    assert found.iloc[:6].isna().all().all()
    assert found.iloc[6:].notna().all().all()
    assert not {*model.train_indices, *model.validation_indices, *model.test_indices} & set(range(6))
    assert len(crossed.predictions) == cells.n_obs
    assert crossed.predictions.loc[cells.obs_names[:6], "label"].isna().all()


def test_rare_classes(cells: AnnData, tiny: FoundationModel) -> None:
    cells.obs["id"] = [f"cell {i}" for i in range(cells.n_obs)]
    CellClassifier.setup_anndata(cells, "id")
    model: Any = CellClassifier(cells, tiny, freeze=True)
    model.train(train_size=1.0, **FAST)
    assert model.predict().shape == (cells.n_obs, cells.n_obs + 2)
    with pytest.raises(ValueError, match="n_folds=3: a class has 1 cells or genes, which is less"):
        model.cross_validate(3, **FAST)
    cells.obs["of"] = cells.obs["kind"].astype(str)
    with pytest.raises(ValueError, match=r"All cells that are trained on have the same label of obs\['kind'\]"):
        classifier(cells, tiny, donors="of").train(train_size=0.34, validation_size=0.33, **FAST)


def test_results_that_would_share_a_name(cells: AnnData) -> None:
    cells.obs["kind_score"] = 1.0
    with pytest.raises(ValueError, match="Results of 'kind' are stored under 'kind_score' too"):
        MultiTaskClassifier.setup_anndata(cells, ["kind", "kind_score"])


def test_thresholds_and_names_of_results(cells: AnnData, tiny: FoundationModel) -> None:
    model = classifier(cells, tiny, freeze=True)
    model.train(train_size=0.8, **FAST)
    with pytest.raises(ValueError, match="threshold must be between 0 and 1, got 7"):
        model.predict(threshold=7.0)
    with pytest.raises(ValueError, match=r"would overwrite obs\['kind'\], which scfm.tl.predict did not write"):
        model.predict(key_added="kind")


def test_a_single_step_learns(cells: AnnData, tiny: FoundationModel) -> None:
    few = cells[:6].copy()
    model = classifier(few, tiny, freeze=True)
    model.train(train_size=1.0, **FAST)
    assert model.history["lr"].iloc[0, 0] == pytest.approx(FAST["lr"])


def test_genes_to_validate_with(cells: AnnData, tiny: FoundationModel) -> None:
    names = cells.var_names.tolist()
    GeneClassifier.setup_anndata(cells)
    with pytest.raises(ValueError, match="There are no genes to validate with: 8 are trained on. Lower train_size"):
        GeneClassifier(cells, {"a": names[:4], "b": names[4:8]}, tiny).train(**FAST)


def test_a_number_that_is_always_the_same(cells: AnnData, tiny: FoundationModel) -> None:
    cells.obs["same"] = 0.1
    CellRegressor.setup_anndata(cells, "same")
    model: Any = CellRegressor(cells, tiny, freeze=True)
    model.train(train_size=0.6, validation_size=0.2, **FAST)
    np.testing.assert_allclose(model.predict()["value"], 0.1, rtol=1e-5)
    assert model.evaluate()[["r2", "pearson"]].isna().all().all()
