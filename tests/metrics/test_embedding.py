"""Metrics of embeddings against slow, obvious formulas, and upstream's way of taking them."""

from __future__ import annotations

import random
import sys
from math import comb, log
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scfm.metrics as metrics
from scfm.metrics import neighbors

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_CELLS = 120


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    """Four cell types that overlap, three batches that are shifted a little; one type is in one batch only."""
    rng = np.random.default_rng(0)
    types = rng.integers(0, 4, N_CELLS)
    batches = np.where(types == 3, 0, rng.integers(0, 3, N_CELLS))
    points = rng.normal(size=(4, 5))[types] * 2 + rng.normal(size=(3, 5))[batches] + rng.normal(size=(N_CELLS, 5))
    obs = pd.DataFrame({"type": np.array(list("abcd"))[types], "batch": batches}).set_index(
        pd.Index([f"cell-{i}" for i in range(N_CELLS)])
    )
    obs["type"] = obs["type"].astype("category")
    return ad.AnnData(obs=obs, obsm={"X": points.astype(np.float32)})


@pytest.fixture(scope="module")
def points(adata: ad.AnnData) -> NDArray[np.float32]:
    return adata.obsm["X"]


@pytest.fixture(scope="module")
def types(adata: ad.AnnData) -> NDArray[Any]:
    return np.asarray(adata.obs["type"])


@pytest.fixture(scope="module")
def batches(adata: ad.AnnData) -> NDArray[Any]:
    return np.asarray(adata.obs["batch"])


def distances(points: NDArray[np.float32]) -> NDArray[np.float64]:
    x = points.astype(np.float64)
    return np.sqrt(((x[:, None] - x[None]) ** 2).sum(axis=2))


def widths(points: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Silhouette width of each cell."""
    d, out = distances(points), np.zeros(len(points))
    for i, label in enumerate(labels):
        own = (labels == label) & (np.arange(len(points)) != i)
        if own.any():
            a = d[i, own].mean()
            b = min(d[i, labels == other].mean() for other in set(labels) - {label})
            out[i] = (b - a) / max(a, b)
    return out


def reachable(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which cells can be reached from which."""
    reach = edges | np.eye(len(edges), dtype=bool)
    for _ in range(len(edges)):
        further = reach @ reach
        if (further == reach).all():
            break
        reach = further
    return reach


def connectivity(points: NDArray[np.float32], labels: NDArray[Any], n_neighbors: int, *, directed: bool) -> float:
    order = np.argsort(distances(points), axis=1)[:, :n_neighbors]
    edges = np.zeros((len(points), len(points)), dtype=bool)
    np.put_along_axis(edges, order, values=True, axis=1)
    shares = []
    for label in sorted(set(labels)):
        part = edges[np.ix_(labels == label, labels == label)]
        reach = reachable(part if directed else part | part.T)
        shares.append((reach & reach.T).sum(axis=1).max() / len(part))
    return float(np.mean(shares))


def mutual_information(a: list[int], b: list[int]) -> float:
    n, value = len(a), 0.0

    def entropy(x: list[int]) -> float:
        return -sum(x.count(v) / n * log(x.count(v) / n) for v in set(x))

    for u in set(a):
        for v in set(b):
            both = sum(x == u and y == v for x, y in zip(a, b, strict=True))
            if both:
                value += both / n * log(n * both / (a.count(u) * b.count(v)))
    return value / ((entropy(a) + entropy(b)) / 2)


def rand_index(a: list[int], b: list[int]) -> float:
    def pairs(x: list[Any]) -> int:
        return sum(comb(x.count(v), 2) for v in set(x))

    expected = pairs(a) * pairs(b) / comb(len(a), 2)
    return (pairs(list(zip(a, b, strict=True))) - expected) / ((pairs(a) + pairs(b)) / 2 - expected)


def test_silhouette_of_labels(points: NDArray[np.float32], types: NDArray[Any]) -> None:
    assert metrics.silhouette_label(points, types) == pytest.approx((widths(points, types).mean() + 1) / 2, abs=1e-5)
    types = np.where(np.arange(N_CELLS) == 7, "alone", types)
    assert metrics.silhouette_label(points, types) == pytest.approx((widths(points, types).mean() + 1) / 2, abs=1e-5)


def test_silhouette_of_batches(points: NDArray[np.float32], types: NDArray[Any], batches: NDArray[Any]) -> None:
    means = []
    for label in "abc":  # type d is in one batch only
        cells = types == label
        means.append((1 - np.abs(widths(points[cells], batches[cells]))).mean())
    assert metrics.silhouette_batch(points, batches=batches, labels=types) == pytest.approx(np.mean(means), abs=1e-5)


def test_silhouette_of_batches_upstream(points: NDArray[np.float32], batches: NDArray[Any]) -> None:
    away = 1 - np.abs(widths(points, batches))
    expected = (np.mean([away[batches == batch].mean() for batch in set(batches)]) + 1) / 2
    assert metrics.silhouette_batch(points, batches=batches, compat="upstream") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n_neighbors", [3, 15])
def test_graph_connectivity(points: NDArray[np.float32], types: NDArray[Any], n_neighbors: int) -> None:
    directed = connectivity(points, types, n_neighbors, directed=True)
    undirected = connectivity(points, types, n_neighbors, directed=False)
    assert metrics.graph_connectivity(points, types, n_neighbors=n_neighbors) == pytest.approx(directed)
    ours = metrics.graph_connectivity(points, types, n_neighbors=n_neighbors, compat="upstream")
    assert ours == pytest.approx(undirected)
    if n_neighbors == 3:
        assert directed < undirected < 1


@pytest.mark.filterwarnings("ignore")  # of scanpy and umap about each other
def test_the_graph_is_that_of_scanpy(adata: ad.AnnData, points: NDArray[np.float32]) -> None:
    import scanpy as sc

    adata = adata.copy()
    sc.pp.neighbors(adata, use_rep="X", transformer="sklearn")
    ours = neighbors.neighbors_of(points, 15).knn_graph_connectivities
    np.testing.assert_allclose(ours.toarray(), adata.obsp["connectivities"].toarray(), atol=1e-6)


def test_agreement_with_louvain_upstream(points: NDArray[np.float32], types: NDArray[Any]) -> None:
    import igraph

    codes = np.unique(types, return_inverse=True)[1].tolist()
    graph = neighbors.neighbors_of(points, 15).knn_graph_connectivities.toarray()
    edges = [(i, j) for i in range(N_CELLS) for j in range(i + 1, N_CELLS) if graph[i, j]]
    igraph.set_random_number_generator(random.Random(42))
    clusters = [
        igraph.Graph(n=N_CELLS, edges=edges).community_multilevel(resolution=step / 10).membership
        for step in range(1, 21)
    ]
    igraph.set_random_number_generator(random)
    best = max(clusters, key=lambda found: mutual_information(codes, found))
    assert len({len(set(found)) for found in clusters}) > 3  # resolutions differ
    nmi, ari = metrics.nmi_ari(points, types, compat="upstream")
    assert nmi == pytest.approx(mutual_information(codes, best))
    assert ari == pytest.approx(rand_index(codes, best))
    assert 0.3 < ari < nmi < 1


@pytest.mark.parametrize("options", [{"clustering": "leiden"}, {"clustering": "kmeans"}, {"compat": "upstream"}])
def test_agreement_of_clusters(points: NDArray[np.float32], types: NDArray[Any], options: dict[str, Any]) -> None:
    random_types = np.random.default_rng(1).permutation(types)
    apart = points + 50 * np.unique(types, return_inverse=True)[1][:, None]
    assert metrics.nmi_ari(apart, types, **options) == pytest.approx((1, 1))
    nmi, ari = metrics.nmi_ari(points, types, **options)
    assert 0.4 < nmi < 1
    assert 0.3 < ari < 1
    chance = metrics.nmi_ari(points, random_types, **options)
    assert chance[0] < 0.2
    assert abs(chance[1]) < 0.1


def test_clusters_are_those_of_scib(points: NDArray[np.float32], types: NDArray[Any]) -> None:
    from scfm.metrics.input import import_scib

    expected = import_scib().nmi_ari_cluster_labels_leiden(neighbors.neighbors_of(points, 15), types, seed=42)
    assert metrics.nmi_ari(points, types) == pytest.approx((expected["nmi"], expected["ari"]))


def test_all_scores(adata: ad.AnnData, points: NDArray[np.float32], types: NDArray[Any], batches: NDArray[Any]) -> None:
    before = adata.copy()
    scores = metrics.score_embedding(adata, "X", labels_key="type", batch_key="batch")
    nmi, ari = metrics.nmi_ari(points, types)
    asw = metrics.silhouette_label(points, types)
    mixed = metrics.silhouette_batch(points, batches=batches, labels=types)
    connected = metrics.graph_connectivity(points, types)
    expected = {
        "nmi": nmi,
        "ari": ari,
        "asw": asw,
        "avg_bio": (nmi + ari + asw) / 3,
        "asw_batch": mixed,
        "graph_connectivity": connected,
        "avg_batch": (mixed + connected) / 2,
    }
    pd.testing.assert_series_equal(scores, pd.Series(expected, name="X"))
    pd.testing.assert_series_equal(
        metrics.score_embedding(adata, "X", labels_key="type"), scores.iloc[:4], check_exact=True
    )
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert (list(adata.uns), list(adata.obsm), list(adata.obsp)) == ([], ["X"], [])


def test_all_scores_upstream(
    adata: ad.AnnData, points: NDArray[np.float32], types: NDArray[Any], batches: NDArray[Any]
) -> None:
    """Ten subsets for batches, then ten for labels, from one generator."""
    generator = np.random.RandomState(42)
    few = {"n_neighbors": 5, "compat": "upstream"}
    rows: list[dict[str, float]] = [{} for _ in range(4)]
    for row in rows:
        cells = generator.permutation(N_CELLS)[: N_CELLS // 4]
        row["asw_batch"] = metrics.silhouette_batch(points[cells], batches=batches[cells], compat="upstream")
        row["graph_connectivity"] = metrics.graph_connectivity(points[cells], batches[cells], **few)
        row["avg_batch"] = (row["asw_batch"] + row["graph_connectivity"]) / 2
    for row in rows:
        cells = generator.permutation(N_CELLS)[: N_CELLS // 4]
        row["nmi"], row["ari"] = metrics.nmi_ari(points[cells], types[cells], **few)
        row["asw"] = metrics.silhouette_label(points[cells], types[cells])
        row["avg_bio"] = (row["nmi"] + row["ari"] + row["asw"]) / 3
    scores = metrics.score_embedding(adata, "X", labels_key="type", batch_key="batch", n_subsets=4, **few)
    assert scores.to_dict() == pytest.approx(pd.DataFrame(rows).mean().to_dict())
    alone = metrics.score_embedding(adata, "X", labels_key="type", n_subsets=4, **few)
    pd.testing.assert_series_equal(alone, scores.iloc[:4], check_exact=True)


def test_upstream_takes_ten_subsets(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"n_neighbors=15 of 12 cells"):
        metrics.score_embedding(adata, "X", labels_key="type", compat="upstream")


def test_cells_in_another_order(adata: ad.AnnData) -> None:
    keys = {"labels_key": "type", "batch_key": "batch"}
    there = metrics.score_embedding(adata, "X", **keys)
    back = metrics.score_embedding(adata[::-1].copy(), "X", **keys)
    pd.testing.assert_series_equal(
        there.drop(["nmi", "ari", "avg_bio"]), back.drop(["nmi", "ari", "avg_bio"]), rtol=1e-5
    )


def test_the_random_state_of_others_stays(points: NDArray[np.float32], types: NDArray[Any]) -> None:
    state = random.getstate()
    first = metrics.nmi_ari(points, types, compat="upstream")
    assert random.getstate() == state
    random.seed(2)
    assert metrics.nmi_ari(points, types, compat="upstream") == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_rep": "X_umap"}, r"'X_umap' is not in obsm; found \['X'\]"),
        ({"labels_key": "nope"}, r"'nope' is not in obs; found \['batch', 'type'\]"),
        ({"batch_key": "nope"}, r"'nope' is not in obs"),
    ],
)
def test_missing_keys(adata: ad.AnnData, change: dict[str, str], message: str) -> None:
    with pytest.raises(KeyError, match=message):
        metrics.score_embedding(adata, **{"use_rep": "X", "labels_key": "type"} | change)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * N_CELLS, r"obs\['l'\]: of 120 cells, all are 'a'"),
        ([*range(N_CELLS)], r"obs\['l'\]: of 120 cells, each occurs once"),
        (["a", None, *["b"] * (N_CELLS - 2)], r"obs\['l'\]: 1 of 120 are missing.*adata.obs\[key\].notna"),
        ([1.0, np.nan, *[2.0] * (N_CELLS - 2)], r"obs\['l'\]: 1 of 120 are missing"),
        (pd.Categorical(["a", None, *["b"] * (N_CELLS - 2)]), r"obs\['l'\]: 1 of 120 are missing"),
    ],
)
@pytest.mark.parametrize("key", ["labels_key", "batch_key"])
def test_labels_that_cannot_be_scored(adata: ad.AnnData, labels: Any, message: str, key: str) -> None:
    adata = adata.copy()
    adata.obs["l"] = labels
    with pytest.raises(ValueError, match=message):
        metrics.score_embedding(adata, "X", **{"labels_key": "type", key: "l"})


def test_embeddings_that_cannot_be_scored(adata: ad.AnnData, types: NDArray[Any]) -> None:
    adata = adata.copy()
    adata.obsm["bad"] = adata.obsm["X"].copy()
    adata.obsm["bad"][[3, 5]] = np.nan
    with pytest.raises(ValueError, match=r"obsm\['bad'\] has 2 of 120 rows with NaN or infinity, the first is row 3"):
        metrics.score_embedding(adata, "bad", labels_key="type")
    for wrong in (np.zeros(N_CELLS), np.full((N_CELLS, 2), "a")):
        with pytest.raises(ValueError, match="dense matrix of numbers"):
            metrics.silhouette_label(wrong, types)
    with pytest.raises(ValueError, match="one for each of 119 cells"):
        metrics.silhouette_label(adata.obsm["X"][1:], types)


def test_options_that_are_not_known(points: NDArray[np.float32], types: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="compat='scib' is not known"):
        metrics.graph_connectivity(points, types, compat="scib")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clustering='louvain'"):
        metrics.nmi_ari(points, types, clustering="louvain")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clustering='kmeans' is not part of compat='upstream'"):
        metrics.nmi_ari(points, types, clustering="kmeans", compat="upstream")
    with pytest.raises(ValueError, match="n_neighbors=1 of 120"):
        metrics.nmi_ari(points, types, n_neighbors=1)
    with pytest.raises(ValueError, match="n_subsets must be at least 1, got 0"):
        metrics.score_embedding(ad.AnnData(obsm={"X": points}), "X", labels_key="l", n_subsets=0)


def test_batches_that_cannot_be_scored(points: NDArray[np.float32], types: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="needs labels="):
        metrics.silhouette_batch(points, batches=types)
    with pytest.raises(ValueError, match="No label has several cells in several batches"):
        metrics.silhouette_batch(points, batches=types, labels=types)
    with pytest.raises(ValueError, match="No label has several cells in several batches"):
        metrics.silhouette_batch(points[:4], batches=["x", "x", "y", "z"], labels=["a", "a", "b", "b"])


def test_a_subset_without_two_labels(adata: ad.AnnData) -> None:
    adata = adata.copy()
    adata.obs["rare"] = np.where(np.arange(N_CELLS) < 2, "rare", "common")
    with pytest.raises(ValueError, match=r"In subset \d+ of 10: .*all are.*n_subsets=1 scores all cells at once"):
        metrics.score_embedding(adata, "X", labels_key="rare", n_neighbors=5, compat="upstream")


def test_without_scib_metrics(
    points: NDArray[np.float32], types: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(ImportError, match=r'pip install "scfm-tools\[metrics\]"'):
        metrics.silhouette_label(points, types)
