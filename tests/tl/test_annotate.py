"""tl.annotate: what it stores where, on what, and what it refuses."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse
from sklearn.metrics import roc_auc_score

import scfm
from scfm.genes import Vocabulary, align
from scfm.ontology import CellOntology
from scfm.tl._annotate import annotate

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ["B cell", "CD4+/CD25 T", "monocyte", "NK cell"]
HOW: dict[str, Any] = {"labels_key": "cell_type", "use_rep": "X_scfm_mini"}
TERMS = {"CL:1": "lymphocyte", "CL:2": "T cell", "CL:3": "B cell", "CL:4": "NK cell", "CL:5": "monocyte"}
ONTOLOGY = CellOntology(
    ["CL:0", *TERMS, "CL:6"],
    [("CL:1", "CL:0"), ("CL:2", "CL:1"), ("CL:3", "CL:1"), ("CL:4", "CL:1"), ("CL:5", "CL:0"), ("CL:6", "CL:5")],
    names={"CL:0": "leukocyte", **TERMS, "CL:6": "macrophage"},
    synonyms={"CL:2": ["CD4+/CD25 T"]},
)


def made(n_obs: int = 120, seed: int = 0, *, batches: int = 3) -> ad.AnnData:
    """Cells with an embedding, labels and colours; the labels in an order of their own."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(4, size=n_obs)
    values = (rng.normal(size=(n_obs, 5)) + 6 * np.eye(5)[codes]).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(codes, categories=pd.Index(LABELS)),
            "batch": rng.integers(batches, size=n_obs),
        },
        index=[f"cell{seed}-{i}" for i in range(n_obs)],
    )
    params = {"model": "scfm-mini", "weights_sha256": "abc", "pooling": "mean", "hidden_layer": 0}
    return ad.AnnData(
        sparse.random_array((n_obs, 7), density=0.5, format="csr", random_state=0),
        obs=obs,
        obsm={"X_scfm_mini": values},
        uns={"cell_type_colors": ["#111111", "#222222", "#333333", "#444444"], "scfm_mini": {"params": params}},
    )


def right(adata: ad.AnnData, key: str = "annotation") -> float:
    return float(np.mean(adata.obs[key].astype(str).to_numpy() == adata.obs["cell_type"].astype(str).to_numpy()))


@pytest.mark.parametrize("method", ["knn", "logistic", "linear_probe"])
def test_fields(method: Any, tmp_path: Path) -> None:
    reference, query = made(), made(40, 1)
    before = query.copy()
    assert annotate(query, reference, method=method, **HOW) is None
    assert right(query) > (0.9 if method != "linear_probe" else 0.5)
    assert list(query.obs["annotation"].cat.categories) == LABELS
    assert query.uns["annotation_colors"] == reference.uns["cell_type_colors"]
    probabilities = query.obsm["annotation_probabilities"]
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (40, 4))
    for column in ("annotation_score", "annotation_novelty"):
        assert query.obs[column].dtype == np.float32
    np.testing.assert_array_equal(query.obs["annotation_score"], probabilities.max(axis=1))
    labels = query.uns["annotation"]["params"]["labels"]
    np.testing.assert_array_equal(labels[probabilities.argmax(axis=1)], query.obs["annotation"].astype(str))
    added = {"annotation", "annotation_score", "annotation_novelty"}
    assert set(query.obs) == {*before.obs, *added}
    pd.testing.assert_frame_equal(query.obs.drop(columns=list(added)), before.obs)
    np.testing.assert_array_equal(query.X.toarray(), before.X.toarray())
    for path in (tmp_path / "a.h5ad", tmp_path / "a.zarr"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*zarr", category=UserWarning)  # of the format, by anndata
            query.write_h5ad(path) if path.suffix == ".h5ad" else query.write_zarr(path)
        found = (ad.read_h5ad if path.suffix == ".h5ad" else ad.read_zarr)(path)
        assert found.uns["annotation"]["params"]["method"] == method
        assert list(found.uns["annotation"]["params"]["labels"]) == LABELS
        pd.testing.assert_series_equal(found.obs["annotation"], query.obs["annotation"])


def test_params() -> None:
    reference, query = made(), made(40, 1)
    annotate(query, reference, reject=0.1, batch_key="batch", n_neighbors=9, key_added="mine", **HOW)
    params = query.uns["mine"]["params"]
    assert params["n_reference"] == 120
    assert params["n_annotated"] + params["n_rejected"] == 40
    assert params["n_rejected"] == (query.obs["mine"] == "unknown").sum() > 0
    assert (params["method"], params["n_neighbors"], params["metric"]) == ("knn", 9, "whitened")
    assert (params["reject"], params["batch_key"], params["n_empty"]) == (0.1, "batch", 0)
    assert params["embedding"] == {"model": "scfm-mini", "weights_sha256": "abc", "pooling": "mean", "hidden_layer": 0}
    novelty = query.obs["mine_novelty"]
    assert ((query.obs["mine"] == "unknown") == (novelty > params["limit"])).all()
    assert list(query.obs["mine"].cat.categories) == [*LABELS, "unknown"]
    assert query.uns["mine_colors"][-1] == "#d3d3d3"
    assert query.obs["mine_score"].notna().all()


def of_genes(adata: ad.AnnData, genes: slice) -> ad.AnnData:
    """The same, with an embedding that says it was made of some of 100 genes."""
    vocabulary = Vocabulary.of_names([f"ENSG{i:011d}" for i in range(100)], [])
    report = align(pd.DataFrame(index=vocabulary.genes[genes]), vocabulary).report
    adata.uns["scfm_mini"]["params"]["genes"] = report.as_dict()
    return adata


@pytest.mark.parametrize("method", ["knn", "logistic"])
def test_embeddings_of_different_genes(method: Any) -> None:
    query = of_genes(made(40, 1), slice(40, 70))
    counts = "30 in data, 60 in the reference, 20 in both"
    with pytest.warns(UserWarning, match=f"based on different genes: {counts}.*shared_with=reference") as caught:
        annotate(query, of_genes(made(), slice(60)), method=method, **HOW)
    assert len(caught) == 1


def test_embeddings_of_the_same_or_nearly_the_same_genes() -> None:
    for genes in (slice(60), slice(3, 63), slice(8, 60)):
        annotate(of_genes(made(40, 1), slice(60)), of_genes(made(), genes), **HOW)


def test_files_of_different_genes(tmp_path: Path) -> None:
    of_genes(made(40, 1), slice(40, 70)).write_h5ad(tmp_path / "query.h5ad")
    of_genes(made(), slice(60)).write_h5ad(tmp_path / "reference.h5ad")
    with pytest.warns(UserWarning, match="based on different genes"):
        annotate(tmp_path / "query.h5ad", tmp_path / "reference.h5ad", out=tmp_path / "out.h5ad", **HOW)


def test_labels_come_back_with_shared_genes() -> None:
    """The case that the warning describes, in small."""
    cells = scfm.datasets.pbmc68k()
    order = np.random.default_rng(0).permutation(700)
    reference = cells[order[:300]].copy()
    query = cells[order[300:400], np.random.default_rng(1).permutation(765)[:250]].copy()
    how: dict[str, Any] = {"labels_key": "bulk_labels", "use_rep": "X_scfm_mini"}
    model = scfm.model.load("scfm-mini")
    for one in (reference, query):
        scfm.tl.embed(one, model)
    with pytest.warns(UserWarning, match="based on different genes"):
        annotate(query, reference, **how)
    scfm.tl.embed(query, model, shared_with=reference)
    scfm.tl.embed(reference, model, shared_with=query)
    annotate(query, reference, **how)
    assert (query.obs["annotation"].astype(str) == query.obs["bulk_labels"].astype(str)).mean() > 0.6


def test_a_column_of_labels_that_is_there_twice() -> None:
    reference, query = made(), made(40, 1)
    reference.obs = pd.concat([reference.obs, reference.obs[["cell_type"]]], axis=1)
    annotate(query, reference, **HOW)
    assert right(query) > 0.9
    reference.obs = pd.concat([made().obs, made(seed=2).obs[["cell_type"]].set_axis(reference.obs_names)], axis=1)
    with pytest.raises(ValueError, match="obs has 2 columns named 'cell_type', which differ"):
        annotate(query, reference, **HOW)


def test_a_copy() -> None:
    query = made(40, 1)
    found = annotate(query, made(), copy=True, **HOW)
    assert isinstance(found, ad.AnnData)
    assert "annotation" in found.obs
    assert "annotation" not in query.obs
    assert "annotation" not in query.uns


def test_own_labels_are_the_reference() -> None:
    adata = made(160)
    truth = adata.obs["cell_type"].copy()
    adata.obs.loc[adata.obs_names[100:], "cell_type"] = np.nan
    annotate(adata, reject=0.05, **HOW)
    found = adata.obs["annotation"]
    assert (found[:100].astype(str) == truth[:100].astype(str)).all()
    assert (found[100:].astype(str) == truth[100:].astype(str)).mean() > 0.8
    for column in ("annotation_score", "annotation_novelty"):
        assert adata.obs[column][:100].isna().all()
        assert adata.obs[column][100:].notna().all()
    assert np.isnan(adata.obsm["annotation_probabilities"][:100]).all()
    assert adata.obs["cell_type"][100:].isna().all()
    other = made(160)
    annotate(other[100:].copy(), other[:100].copy(), **HOW)
    with pytest.raises(ValueError, match="would overwrite the labels of the reference"):
        annotate(adata, key_added="cell_type", **HOW)


def test_a_reference_in_another_order_of_cells_and_a_part_of_the_query() -> None:
    reference, query = made(), made(40, 1)
    annotate(query, reference, reject=0.05, method="logistic", **HOW)
    part = query[10:20].copy()
    annotate(part, reference, reject=0.05, method="logistic", key_added="again", **HOW)
    assert list(part.obs["again"]) == list(part.obs["annotation"])
    np.testing.assert_allclose(part.obs["again_novelty"], part.obs["annotation_novelty"], atol=1e-6)


@pytest.mark.parametrize("kind", ["text", "number", "part"])
def test_labels_of_any_kind(kind: str) -> None:
    reference, query = made(), made(40, 1)
    if kind == "text":
        reference.obs["cell_type"] = reference.obs["cell_type"].astype(object)
        expected = sorted(LABELS)
    elif kind == "number":
        reference.obs["cell_type"] = reference.obs["cell_type"].cat.codes.astype(int)
        expected = ["0", "1", "2", "3"]
    else:
        reference = reference[reference.obs["cell_type"] != "NK cell"].copy()
        reference.obs["cell_type"] = reference.obs["cell_type"].cat.add_categories(["NK cell"])
        expected = LABELS[:3]
    annotate(query, reference, **HOW)
    assert list(query.obs["annotation"].cat.categories) == expected
    assert len(set(query.uns["annotation_colors"])) == len(expected)
    assert query.obsm["annotation_probabilities"].shape[1] == len(expected)


def test_cells_without_a_label_or_an_embedding() -> None:
    reference, query = made(), made(40, 1)
    reference.obs.loc[reference.obs_names[:10], "cell_type"] = np.nan
    expected = annotate(query, reference[10:].copy(), copy=True, **HOW)
    annotate(query, reference, **HOW)
    assert list(query.obs["annotation"]) == list(expected.obs["annotation"])
    query.obsm["X_scfm_mini"][[3, 5]] = np.nan
    reference.obsm["X_scfm_mini"][20] = np.nan
    with pytest.warns(UserWarning, match="cells") as caught:
        annotate(query, reference, key_added="nan", **HOW)
    assert [str(warning.message).split(" (")[0] for warning in caught] == [
        "2 of 40 cells to annotate have no obsm['X_scfm_mini']",
        "1 of 110 cells of the reference have no obsm['X_scfm_mini']",
    ]
    assert caught[0].filename == __file__
    lacking = query.obs["nan"].isna().to_numpy()
    assert np.flatnonzero(lacking).tolist() == [3, 5]
    for column in ("nan_score", "nan_novelty"):
        assert (query.obs[column].isna() == lacking).all()
    assert np.isnan(query.obsm["nan_probabilities"][lacking]).all()
    assert query.uns["nan"]["params"]["n_empty"] == 2
    query.obsm["X_scfm_mini"][:] = np.nan
    with pytest.warns(UserWarning, match="40 of 40"), pytest.raises(ValueError, match="No cell to annotate has an emb"):
        annotate(query, reference[:20].copy(), **HOW)


@pytest.mark.parametrize("make", [pd.DataFrame, sparse.csr_array, lambda x: x.astype(np.float64)])
def test_embeddings_of_any_kind(make: Any) -> None:
    reference, query = made(), made(40, 1)
    expected = annotate(query, reference, copy=True, **HOW)
    for adata in (reference, query):
        values = make(adata.obsm["X_scfm_mini"])
        adata.obsm["X_scfm_mini"] = values.set_index(adata.obs_names) if isinstance(values, pd.DataFrame) else values
    annotate(query, reference, **HOW)
    assert list(query.obs["annotation"]) == list(expected.obs["annotation"])


@pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")  # of mudata about its next release
@pytest.mark.filterwarnings("ignore:Cannot join columns:UserWarning")  # of mudata; the modalities share names of genes
def test_mudata() -> None:
    expected = annotate(made(40, 1), made(), copy=True, **HOW)
    mdata, other = (
        md.MuData({"rna": adata, "prot": ad.AnnData(np.ones((adata.n_obs, 2), np.float32), obs=adata.obs[[]])})
        for adata in (made(40, 1), made())
    )
    for reference in (other, other["rna"]):
        found = annotate(mdata, reference, modality="rna", copy=True, **HOW)
        assert list(found["rna"].obs["annotation"]) == list(expected.obs["annotation"])
        assert "annotation" not in mdata["rna"].obs
    with pytest.raises(ValueError, match=r"data is a MuData and needs modality=. Its modalities: 'rna', 'prot'"):
        annotate(mdata, other, **HOW)
    with pytest.raises(ValueError, match="data is a MuData and has no modality 'atac'"):
        annotate(mdata, other, modality="atac", **HOW)
    with pytest.raises(ValueError, match="modality='rna' is for a MuData, and there is none"):
        annotate(made(40, 1), made(), modality="rna", **HOW)


def test_backed_cells(tmp_path: Path) -> None:
    made(40, 1).write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    annotate(backed, made(), **HOW)
    assert right(backed) > 0.9
    with pytest.raises(ValueError, match="copy of backed data"):
        annotate(backed, made(), copy=True, **HOW)
    backed.file.close()


def test_ids_of_terms() -> None:
    reference, query = made(), made(40, 1)
    annotate(query, reference, ontology=ONTOLOGY, reject=0.3, **HOW)
    ids = {"B cell": "CL:3", "CD4+/CD25 T": "CL:2", "monocyte": "CL:5", "NK cell": "CL:4"}
    rejected = query.obs["annotation"] == "unknown"
    assert query.obs["annotation_cl"][rejected].isna().all()
    known = query.obs[~rejected]
    assert list(known["annotation_cl"]) == [ids[label] for label in known["annotation"]]
    annotate(query, reference, **HOW)
    assert query.obs["annotation_cl"].isna().all()


def test_types_that_the_reference_lacks() -> None:
    reference, query = made(), made(60, 1)
    candidates = ["CL:6", "NK cell"]
    annotate(query, reference, method="ontology", ontology=ONTOLOGY, candidates=candidates, **HOW)
    assert list(query.obs["annotation"].cat.categories) == candidates
    monocytes = query.obs["cell_type"] == "monocyte"
    assert (query.obs["annotation"][monocytes] == "CL:6").all()
    assert set(query.obs["annotation_cl"]) == {"CL:6", "CL:4"}
    assert query.uns["annotation"]["params"]["ontology"] == str(ONTOLOGY)
    np.testing.assert_allclose(query.obsm["annotation_probabilities"].sum(axis=1), 1, atol=1e-6)
    assert len(set(query.uns["annotation_colors"])) == 2
    query.obs.loc[query.obs_names[:10], "cell_type"] = np.nan
    annotate(query, method="ontology", ontology=ONTOLOGY, candidates=["macrophage", "CL:2"], **HOW)
    assert query.obs["annotation"][:10].isin(["macrophage", "CL:2"]).all()
    assert list(query.obs["annotation"].cat.categories) == [*LABELS, "macrophage", "CL:2"]
    assert query.obs["annotation_cl"].notna().all()


def test_the_bundled_ontology() -> None:
    reference, query = made(), made(40, 1)
    for adata in (reference, query):
        names = ["B cell", "T cell", "monocyte", "natural killer cell"]
        adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(names)
    candidates = ["CD8-positive, alpha-beta T cell", "macrophage"]
    annotate(query, reference, method="ontology", ontology="bundled", candidates=candidates, **HOW)
    for label, expected in (("T cell", candidates[0]), ("monocyte", candidates[1])):
        assert (query.obs["annotation"][query.obs["cell_type"] == label] == expected).mean() > 0.8
    reference.obs["cell_type"] = reference.obs["cell_type"].cat.rename_categories({"T cell": "T zell"})
    with pytest.raises(ValueError, match=r"'T zell' is unknown \(closest: 'T cell' CL:0000084"):
        annotate(query, reference, ontology="bundled", **HOW)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels_key": "celltype"}, KeyError, r"no column obs\['celltype'\] for labels_key; did you mean 'cell_type'"),
        ({"batch_key": "donor", "reject": 0.1}, KeyError, r"no column obs\['donor'\] for batch_key; there are"),
        ({"use_rep": "X_scfm"}, KeyError, r"no obsm\['X_scfm'\] in data; did you mean 'X_scfm_mini'"),
        ({"method": "svm"}, ValueError, r"method='svm' is not known; use 'knn', 'logistic'"),
        ({"method": "ontology"}, ValueError, r"needs candidates="),
        ({"candidates": ["T cell", "CL:6"]}, ValueError, r"candidates= is for method='ontology'; 'knn' chooses"),
        ({"reject": 1.0}, ValueError, r"reject=1.0 must lie between 0 and 1"),
        ({"batch_key": "batch"}, ValueError, r"batch_key='batch' says what is left out.*give reject="),
        ({"key_added": "a/b"}, ValueError, r"key_added='a/b' cannot be stored"),
        ({"n_neighbors": 500}, ValueError, r"n_neighbors=500 must be between 1 and the 120 cells"),
        ({"ontology": ONTOLOGY, "method": "ontology", "candidates": ["T cell"]}, ValueError, "two at least"),
        (
            {"ontology": ONTOLOGY, "method": "ontology", "candidates": "T cell"},
            TypeError,
            "candidates must be a list of str or None; got 'T cell'",
        ),
        ({"method": "logistic", "metric": "cosine"}, ValueError, "metric='cosine' is for method='knn'"),
        ({"key_added": "scfm_mini"}, ValueError, r"would overwrite uns\['scfm_mini'\]"),
        (
            {"ontology": ONTOLOGY, "method": "ontology", "candidates": ["T cell", "CL:2"]},
            ValueError,
            r"candidates 'T cell', 'CL:2' are one and the same term, CL:2",
        ),
        (
            {"ontology": ONTOLOGY, "method": "ontology", "candidates": ["macrophages", "T cell"]},
            ValueError,
            r"'macrophages' is unknown \(closest: 'macrophage' CL:6",
        ),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    query = made(40, 1)
    with pytest.raises(error, match=message):
        annotate(query, made(), **{**HOW, **change})
    assert "annotation" not in query.obs
    assert not any(key.startswith("annotation") for key in (*query.uns, *query.obsm))


def test_embeddings_that_cannot_be_compared() -> None:
    query, reference = made(40, 1), made()
    params = reference.uns["scfm_mini"]["params"]
    params.update(model="geneformer-v1-10m", weights_sha256="def")
    with pytest.raises(
        ValueError, match=r"by model 'scfm-mini'.*'abc', that of the reference by model 'geneformer-v1-"
    ):
        annotate(query, reference, **HOW)
    params.update(model="a copy of it", weights_sha256="abc")
    annotate(query, reference, **HOW)
    params.update(pooling="cls")
    with pytest.raises(
        ValueError, match=r"pooling 'mean', that of the reference by model 'a copy of it', pooling 'cls'"
    ):
        annotate(query, reference, **HOW)
    del reference.uns["scfm_mini"]
    annotate(query, reference, **HOW)
    reference.obsm["X_scfm_mini"] = reference.obsm["X_scfm_mini"][:, :3]
    with pytest.raises(ValueError, match="has 5 features, that of the reference 3"):
        annotate(query, reference, **HOW)


def test_what_is_no_reference() -> None:
    query = made(40, 1)
    with pytest.raises(ValueError, match="Every cell of data has a label"):
        annotate(query, **HOW)
    with pytest.raises(TypeError, match="reference must be AnnData, MuData, str, Path or None; got 1"):
        annotate(query, 1, **HOW)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no file 'reference.h5ad'"):
        annotate(query, "reference.h5ad", **HOW)
    with pytest.raises(ValueError, match="does not change the file query.h5ad. Give out="):
        annotate("query.h5ad", made(), **HOW)
    empty = made()
    empty.obs["cell_type"] = np.nan
    with pytest.raises(
        ValueError, match=r"No cell of the reference has a label in obs\['cell_type'\] and an embedding"
    ):
        annotate(query, empty, **HOW)
    with pytest.raises(ValueError, match="No cell to annotate has an embedding"):
        annotate(query[:0].copy(), made(), **HOW)
    unknown = made()
    unknown.obs["cell_type"] = unknown.obs["cell_type"].cat.rename_categories({"NK cell": "unknown"})
    with pytest.raises(ValueError, match="'unknown' is one of the labels and the name for rejected cells"):
        annotate(query, unknown, reject=0.1, **HOW)
    annotate(query, unknown, **HOW)
    for label in ("nan", ""):
        named = made()
        named.obs["cell_type"] = named.obs["cell_type"].cat.rename_categories({"NK cell": label})
        with pytest.raises(ValueError, match="stands for none: make it missing"):
            annotate(query, named, **HOW)
    numbers = made()
    numbers.obs["cell_type"] = np.linspace(0, 1, numbers.n_obs)
    with pytest.raises(ValueError, match="holds float64 values"):
        annotate(query, numbers, **HOW)


def test_a_query_that_is_unlike_the_whole_reference() -> None:
    query, reference = made(40, 1), made()
    query.obsm[HOW["use_rep"]] = -query.obsm[HOW["use_rep"]]
    with pytest.warns(UserWarning, match="40 of 40 cells were rejected: they are unlike the reference as a whole"):
        annotate(query, reference, reject=0.05, **HOW)


def test_many_labels_have_colours() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([f"type {i}" for i in range(110)], 3)
    values = rng.normal(size=(330, 4))
    adata = ad.AnnData(
        obs=pd.DataFrame({"cell_type": labels}, index=map(str, range(330))), obsm={"X_scfm_mini": values}
    )
    adata.obs.loc["0", "cell_type"] = np.nan
    annotate(adata, **HOW)
    assert len(adata.uns["annotation_colors"]) == 110


def test_lung_cancer_lines(shared: Path) -> None:
    adata = ad.read_h5ad(shared / "data" / "cell_lines.h5ad")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=30, random_state=0)
    adata = ad.AnnData(obs=adata.obs, obsm=adata.obsm)
    how = {"labels_key": "cell_line", "use_rep": "X_pca"}
    lines, batches = (adata.obs[key].to_numpy(str) for key in ("cell_line", "batch"))
    auroc = []
    for batch in np.unique(batches):
        query = adata[batches == batch].copy()
        annotate(query, adata[batches != batch].copy(), **how)
        assert (query.obs["annotation"].to_numpy(str) == query.obs["cell_line"].to_numpy(str)).mean() > 0.95
        for line in np.unique(lines[batches == batch]):
            annotate(query, adata[(batches != batch) & (lines != line)].copy(), **how)
            auroc.append(roc_auc_score(query.obs["cell_line"] == line, query.obs["annotation_novelty"]))
    assert len(auroc) == 21
    assert np.mean(auroc) > 0.95
