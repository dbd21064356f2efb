"""tl.annotate by a model that is trained on the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from anndata.tests.helpers import assert_equal
from scipy import sparse
from sklearn.metrics import roc_auc_score

import scfm
from scfm.testing import write_geneformer

from ..train.supervised.conftest import KINDS, N_GENES, make_cells

if TYPE_CHECKING:
    from pathlib import Path

    from scfm.model import FoundationModel

pytest.importorskip("scvi")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:From 0.4:FutureWarning",  # of mudata about its next release
        "ignore:Cannot join columns:UserWarning",
    ),
]
TRAINING: dict[str, Any] = {"max_epochs": 8, "lr": 1e-2, "batch_size": 8, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> FoundationModel:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return scfm.model.load(write_geneformer(folder, n_genes=N_GENES, n_layers=2, max_tokens=48))


@pytest.fixture
def query() -> ad.AnnData:
    adata = make_cells(30, seed=1)
    adata.obs = adata.obs.rename(columns={"kind": "true"})
    return adata


def finetune(data: Any, reference: Any, tiny: FoundationModel, **more: Any) -> Any:
    how = {"labels_key": "kind", "method": "finetune", "model": tiny, "training": TRAINING}
    return scfm.tl.annotate(data, reference, **{**how, **more})


def right(adata: ad.AnnData) -> float:
    return float((adata.obs["annotation"].astype(str) == adata.obs["true"].astype(str)).mean())


def test_labels_probabilities_and_what_stays(tiny: FoundationModel, query: ad.AnnData) -> None:
    reference = make_cells()
    before, reference_before = query.copy(), reference.copy()
    finetune(query, reference, tiny)
    assert right(query) > 0.9
    probabilities = query.obsm["annotation_probabilities"]
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (30, 3))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(query.obs["annotation_score"], probabilities.max(axis=1))
    params = query.uns["annotation"]["params"]
    assert list(params["labels"]) == list(KINDS)
    assert (params["method"], params["embedding"]["model"]) == ("finetune", tiny.card.id)
    pd.testing.assert_frame_equal(query.obs[before.obs.columns], before.obs)
    assert (query.X != before.X).nnz == 0
    assert set(query.uns) == {"annotation", "annotation_colors"}  # nothing of scvi-tools
    assert set(query.obsm) == {"annotation_probabilities"}
    assert_equal(reference, reference_before)


def test_the_reference_is_as_it_was_after_a_failure(tiny: FoundationModel, query: ad.AnnData) -> None:
    reference = make_cells()
    before = reference.copy()
    with pytest.raises(ValueError, match="lr must be between 0 and 1"):
        finetune(query, reference, tiny, training={"lr": 5.0})
    assert_equal(reference, before)
    assert not query.uns


def test_what_scvi_tools_wrote_before_stays(tiny: FoundationModel, query: ad.AnnData) -> None:
    reference = make_cells()
    scfm.train.CellClassifier.setup_anndata(reference, "stage")
    scfm.train.CellClassifier(reference, tiny)
    assert "_scvi_uuid" in reference.uns
    finetune(query, reference, tiny, training={**TRAINING, "max_epochs": 1})
    assert {"_scvi_uuid", "_scvi_manager_uuid"} <= set(reference.uns)


def test_cells_without_a_label_are_annotated_by_the_others(tiny: FoundationModel) -> None:
    adata = make_cells(120)
    adata.obs["true"] = adata.obs["kind"]
    adata.obs.loc[adata.obs_names[90:], "kind"] = np.nan
    finetune(adata, None, tiny)
    assert right(adata[90:]) > 0.8
    assert (adata.obs["annotation"][:90].astype(str) == adata.obs["kind"][:90].astype(str)).all()
    assert adata.obs["annotation_score"][:90].isna().all()
    assert adata.obs["annotation_score"][90:].notna().all()
    assert "_scvi_uuid" not in adata.uns


def test_novelty_and_rejection(tiny: FoundationModel, query: ad.AnnData) -> None:
    reference = make_cells(150)
    reference = reference[reference.obs["kind"] != "T cell"].copy()
    finetune(query, reference, tiny, reject=0.1)
    new = query.obs["true"] == "T cell"
    assert roc_auc_score(new, query.obs["annotation_novelty"]) > 0.8
    rejected = query.obs["annotation"] == "unknown"
    assert rejected[new].mean() > 0.5 > rejected[~new].mean()
    params = query.uns["annotation"]["params"]
    assert params["reject"] == 0.1
    assert (rejected == (query.obs["annotation_novelty"] > params["limit"])).all()
    assert query.uns["annotation_colors"][-1] == "#d3d3d3"


def test_a_cell_without_genes_gets_no_label(tiny: FoundationModel, query: ad.AnnData) -> None:
    counts = query.X.toarray()
    counts[3] = 0
    query.X = sparse.csr_matrix(counts)
    with pytest.warns(UserWarning, match="1 of 30 cells"):
        finetune(query, make_cells(), tiny, training={**TRAINING, "max_epochs": 1})
    assert query.obs["annotation"].isna().tolist() == [row == 3 for row in range(30)]
    assert query.uns["annotation"]["params"]["n_empty"] == 1


@pytest.mark.parametrize("place", ["layer", "raw", "gene_key"])
def test_where_counts_and_genes_are(place: str, tiny: FoundationModel, query: ad.AnnData) -> None:
    reference = make_cells()
    for adata in (reference, query):
        if place == "layer":
            adata.layers["umi"] = adata.X
        elif place == "raw":
            adata.raw = adata.copy()
        else:
            adata.var["ids"], adata.var_names = adata.var_names, [f"gene {i}" for i in range(N_GENES)]
            continue
        adata.X = sparse.csr_matrix(adata.X.toarray()[:, ::-1])
    more: dict[str, Any] = {
        "layer": {"layer": "umi"},
        "raw": {"use_raw": True},
        "gene_key": {"gene_key": "ids"},
    }[place]
    finetune(query, reference, tiny, **more)
    assert right(query) > 0.9


def test_files_and_modalities(tiny: FoundationModel, query: ad.AnnData, tmp_path: Path) -> None:
    reference = make_cells()
    query.write_h5ad(tmp_path / "query.h5ad")
    md.MuData({"rna": reference}).write_h5mu(tmp_path / "reference.h5mu")
    out = tmp_path / "out.h5ad"
    assert finetune(tmp_path / "query.h5ad", tmp_path / "reference.h5mu", tiny, out=out, modality="rna") == out
    expected = finetune(query, reference, tiny, copy=True)
    found = ad.read_h5ad(out)
    assert found.obs["annotation"].tolist() == expected.obs["annotation"].tolist()
    np.testing.assert_array_equal(found.obsm["annotation_probabilities"], expected.obsm["annotation_probabilities"])
    np.testing.assert_array_equal(found.obs["annotation_novelty"], expected.obs["annotation_novelty"])
    mdata = md.MuData({"rna": query.copy()})
    finetune(mdata, reference, tiny, modality="rna")
    assert mdata["rna"].obs["annotation"].tolist() == expected.obs["annotation"].tolist()
    assert "annotation" not in query.obs  # copy=True


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"use_rep": "X_own"}, "use_rep='X_own' names an embedding.*leave use_rep out"),
        ({"model": None}, "method='finetune' needs model="),
        ({"method": "knn", "use_rep": "X_own"}, "model= is for method='finetune'"),
        ({"method": "knn", "model": None, "training": None}, "method='knn' needs use_rep="),
        ({"metric": "cosine"}, "metric='cosine' is for method='knn'"),
    ],
)
def test_arguments_that_do_not_go_together(
    arguments: dict[str, Any], error: str, tiny: FoundationModel, query: ad.AnnData
) -> None:
    query.obsm["X_own"] = np.ones((30, 2), np.float32)
    with pytest.raises(ValueError, match=error):
        finetune(query, make_cells(), tiny, **arguments)


def test_a_column_that_is_not_there(tiny: FoundationModel, query: ad.AnnData) -> None:
    with pytest.raises(KeyError, match="'type' is not in obs; found"):
        finetune(query, make_cells(), tiny, labels_key="type")
