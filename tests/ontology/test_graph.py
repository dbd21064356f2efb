from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfm.ontology import CellOntology

# A diamond with a tail, a second component, and a term alone.
EDGES = [("CL:4", "CL:2"), ("CL:4", "CL:3"), ("CL:3", "CL:1"), ("CL:2", "CL:1"), ("CL:5", "CL:4"), ("CL:7", "CL:6")]
IDS = [f"CL:{i}" for i in (8, 7, 6, 5, 4, 3, 2, 1)]


@pytest.fixture
def onto() -> CellOntology:
    return CellOntology(IDS, EDGES, names={"CL:1": "cell", "CL:4": "T cell"}, synonyms={"CL:4": ["T-cell"], "CL:5": []})


def graph_of(onto: CellOntology) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from(range(len(onto)))
    graph.add_edges_from(onto.graph_edges.tolist())
    return graph


def test_terms(onto: CellOntology) -> None:
    assert onto.ids.tolist() == sorted(IDS)
    assert len(onto) == 8
    assert "CL:4" in onto
    assert "T cell" not in onto
    assert onto.name_of("CL:4") == "T cell"
    assert onto.names.tolist()[:4] == ["cell", "CL:2", "CL:3", "T cell"]  # a term without a name has its id
    assert dict(onto.synonyms) == {"CL:4": ("T-cell",)}
    assert repr(onto) == "CellOntology(8 terms, 6 is_a edges)"
    with pytest.raises(ValueError, match="read-only"):
        onto.ids[0] = "CL:9"


def test_relatives(onto: CellOntology) -> None:
    assert onto.parents("CL:4").tolist() == ["CL:2", "CL:3"]
    assert onto.parents("CL:1").tolist() == []
    assert onto.ancestors("CL:5").tolist() == ["CL:1", "CL:2", "CL:3", "CL:4"]
    assert onto.descendants("CL:1").tolist() == ["CL:2", "CL:3", "CL:4", "CL:5"]
    assert onto.descendants("CL:8").tolist() == []
    for method in (onto.parents, onto.ancestors, onto.descendants, onto.name_of):
        with pytest.raises(ValueError, match="'T cell' is not the id of a term"):
            method("T cell")


def test_edges_by_position_and_by_id_are_the_same(onto: CellOntology) -> None:
    positions = [[IDS.index(a), IDS.index(b)] for a, b in EDGES]
    for edges in (positions, np.array(positions), np.array(EDGES), [*EDGES, EDGES[0]], iter(EDGES)):
        np.testing.assert_array_equal(CellOntology(IDS, edges).graph_edges, onto.graph_edges)


@pytest.mark.parametrize("edges", [[], np.empty((0, 2), int)])
def test_without_edges(edges: object) -> None:
    onto = CellOntology(["CL:2", "CL:1"], edges)  # type: ignore[arg-type]
    np.testing.assert_array_equal(onto.pagerank(max_iter=300), np.eye(2))
    np.testing.assert_array_equal(onto.ancestor_mask(), np.eye(2))


@pytest.mark.parametrize(
    ("ids", "edges", "message"),
    [
        ([], [], "at least one term"),
        (["CL:1", "CL:2", "CL:1"], [], "more than once or empty: 'CL:1'"),
        (["CL:1", ""], [], "more than once or empty: ''"),
        (["CL:1"], [("CL:1", "CL:9")], "absent or obsolete: CL:1 → CL:9"),
        (["CL:1"], [("CL:9", "CL:1")], "absent or obsolete: CL:9 → CL:1"),
        (["CL:1", "CL:2"], [(0, 2)], "positions from 0 to 2, but there are 2 ids"),
        (["CL:1", "CL:2"], [(-1, 0)], "positions from -1 to 0"),
        (["CL:1", "CL:2"], ["CL:1"], "pairs"),
        (["CL:1", "CL:2"], [("CL:1", "CL:1")], "cycle through 'CL:1' CL:1"),
        (["CL:1", "CL:2", "CL:3"], [("CL:1", "CL:2"), ("CL:2", "CL:1")], "cycle through 'CL:1' CL:1, 'CL:2' CL:2"),
    ],
)
def test_refused(ids: list[str], edges: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CellOntology(ids, edges)


def test_upstream_edges_may_go_round() -> None:
    onto = CellOntology(["CL:1", "CL:2"], [("CL:1", "CL:2"), ("CL:2", "CL:1"), ("CL:1", "CL:1")], relation="upstream")
    assert onto.graph_edges.tolist() == [[0, 1], [1, 0]]
    assert onto.ancestors("CL:1").tolist() == ["CL:2"]
    assert onto.ancestor_mask().tolist() == [[1, 1], [1, 1]]


def test_ancestor_mask(onto: CellOntology) -> None:
    ids = ["CL:5", "CL:1", "", "CL:4", "CL:8", "", "CL:5"]
    mask = onto.ancestor_mask(ids)
    assert mask.dtype == np.int32
    for i, a in enumerate(ids):
        for j, b in enumerate(ids):
            expected = i == j or (a and b and (a == b or b in onto.ancestors(a)))
            assert mask[i, j] == bool(expected), (a, b)
    np.testing.assert_array_equal(onto.ancestor_mask(), onto.ancestor_mask(onto.ids))


@given(st.data())
def test_pagerank_equals_networkx(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 25), "nodes")
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))
    onto = CellOntology([f"CL:{i:02}" for i in range(n)], data.draw(st.lists(pairs, max_size=40)), relation="upstream")
    alpha = data.draw(st.floats(0.2, 0.95))
    options = {"alpha": alpha, "tol": data.draw(st.sampled_from([1e-3, 1e-6, 1e-9])), "max_iter": 100}
    graph = graph_of(onto)
    for seed in range(n):
        try:
            expected = nx.pagerank(graph, personalization={seed: 1}, **options)
        except nx.PowerIterationFailedConvergence:
            with pytest.raises(RuntimeError, match=f"did not converge in max_iter=100.*CL:{seed:02}"):
                onto.pagerank([onto.ids[seed]], **options)
        else:
            found = onto.pagerank([onto.ids[seed]], **options)[0]
            np.testing.assert_allclose(found, [expected[i] for i in range(n)], atol=1e-12, rtol=0)


def test_pagerank_of_many_is_that_of_each(onto: CellOntology, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scfm.ontology.graph.SEEDS_AT_ONCE", 3)
    options = {"max_iter": 300, "alpha": 0.7}
    ids, to = ["CL:8", "CL:2", "", "CL:2", "CL:5"], ["CL:6", "", "CL:2", "CL:8", "CL:1", "CL:1"]
    found = onto.pagerank(ids, to=to, **options)  # type: ignore[arg-type]
    every = onto.pagerank(**options)  # type: ignore[arg-type]
    for i, a in enumerate(ids):
        single = onto.pagerank([a], **options)[0] if a else np.zeros(8)  # type: ignore[arg-type]
        for j, b in enumerate(to):
            place = int(np.searchsorted(onto.ids, b))
            assert found[i, j] == pytest.approx(single[place] if a and b else 0, abs=1e-15)
            if a and b:
                assert found[i, j] == pytest.approx(every[np.searchsorted(onto.ids, a), place], abs=1e-15)
    np.testing.assert_allclose(every.sum(axis=1), 1, atol=1e-12)
    assert every[0, 5] > 0  # the uniform start of another component has not yet died away, as upstream
    np.testing.assert_allclose(onto.pagerank(["CL:1"], to=["CL:6"], tol=1e-15, max_iter=2_000), 0, atol=1e-14)


@pytest.mark.parametrize("options", [{"alpha": 1.0}, {"alpha": -0.1}, {"tol": 0}, {"max_iter": 0}, {"tol": np.nan}])
def test_pagerank_refuses(onto: CellOntology, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="are needed; found alpha="):
        onto.pagerank(**options)  # type: ignore[arg-type]


def test_ids_are_checked(onto: CellOntology) -> None:
    for call in (onto.pagerank, onto.similarity, onto.ancestor_mask):
        with pytest.raises(ValueError, match=r"'CL:9' is not the id of a term.*resolve\(\)"):
            call(["CL:1", "CL:9"])
        with pytest.raises(TypeError, match=r"pass a list of ids: \['CL:1'\]"):
            call("CL:1")


def test_similarity(onto: CellOntology) -> None:
    ids = ["CL:1", "", "CL:5", "CL:8"]
    levels, ranks = onto.similarity(ids), onto.pagerank(ids, to=ids, max_iter=1_000)
    assert levels.dtype == np.int32
    for level, rank in zip(levels.ravel(), ranks.ravel(), strict=True):
        assert level == (1 if rank < 1e-4 else int(np.log2(rank / 1e-4 + 1)))
    assert levels[1].tolist() == levels[:, 1].tolist() == [1] * 4
    np.testing.assert_array_equal(onto.similarity(iter(ids)), levels)
