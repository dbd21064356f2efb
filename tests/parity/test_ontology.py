"""Equal to the published scCello code, on values that it wrote for a small and a large ontology."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score

from scfm.ontology import CellOntology, novel_type_scores, prototypes, read_ontology

if TYPE_CHECKING:
    from pathlib import Path

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(reference: Path) -> Path:
    return reference / "fixtures" / "sccello"


@pytest.fixture(scope="module")
def expected(folder: Path) -> Arrays:
    with np.load(folder / "expected.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name.startswith(("onto_", "nct_", "big_"))}


@pytest.fixture(scope="module")
def small(folder: Path) -> CellOntology:
    return read_ontology(folder / "cl_small.owl", edges="upstream")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Arrays:
    return load_file(folder / "checkpoint" / "model.safetensors")


def test_graph(small: CellOntology, expected: Arrays) -> None:
    np.testing.assert_array_equal(small.ids, expected["onto_node_clid"].astype(str))
    order = np.lexsort(expected["onto_edges"].T[::-1])
    np.testing.assert_array_equal(small.graph_edges, expected["onto_edges"][order])


def test_is_a_alone(folder: Path) -> None:
    onto = read_ontology(folder / "cl_small.owl")
    assert "CL:0000804" not in onto  # obsolete
    assert onto.resolve(["CL:0000804", "CL:0000812"]).tolist() == ["CL:0000084"] * 2
    assert onto.parents("CL:0000084").tolist() == ["CL:0000542"]  # upstream: and two more


def test_pagerank(small: CellOntology, expected: Arrays) -> None:
    ranks = small.pagerank()
    np.testing.assert_allclose(ranks, expected["onto_ppr64"], atol=1e-12, rtol=0)
    np.testing.assert_allclose(ranks.astype(np.float32), expected["onto_ppr"], atol=1e-7, rtol=0)


def test_levels_and_ancestors(small: CellOntology, expected: Arrays) -> None:
    np.testing.assert_array_equal(small.similarity(), expected["onto_sim"])
    np.testing.assert_array_equal(small.ancestor_mask(), expected["onto_anc"])
    ids = small.ids[expected["onto_label_node"]]
    np.testing.assert_array_equal(small.similarity(ids), expected["onto_label_sim"])
    np.testing.assert_array_equal(small.ancestor_mask(ids), expected["onto_label_anc"])
    np.testing.assert_allclose(small.pagerank(ids, to=ids), expected["onto_label_ppr"], atol=1e-7, rtol=0)


def test_buffers_of_the_checkpoint(expected: Arrays, checkpoint: Arrays) -> None:
    nodes = expected["big_node_clid"].astype(str)
    onto = CellOntology(nodes, expected["big_edges"], relation="upstream")
    ids = nodes[expected["big_label_node"]]
    np.testing.assert_array_equal(onto.similarity(ids), checkpoint["ctgraph_sim"])
    np.testing.assert_array_equal(onto.ancestor_mask(ids), checkpoint["cell_type_ancestor_mask"])
    ranks = onto.pagerank(ids[expected["big_ppr_rows"]], to=ids)
    np.testing.assert_allclose(ranks, expected["big_ppr_rows_values"], atol=1e-7, rtol=0)


def cell_head(weights: Arrays, x: np.ndarray) -> np.ndarray:
    """Linear, LayerNorm, ReLU, Linear; in float64."""
    w = {name.removeprefix("cell_cls.predictions."): array.astype(np.float64) for name, array in weights.items()}
    x = x @ w["dense_1.weight"].T + w["dense_1.bias"]
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-12)
    x = np.maximum(x * w["layer_norm.weight"] + w["layer_norm.bias"], 0)
    return x @ w["dense_2.weight"].T + w["bias"]


def test_novel_types(small: CellOntology, expected: Arrays, checkpoint: Arrays) -> None:
    names = expected["nct_pretrain_clid"].astype(str)
    reference = cell_head(checkpoint, expected["nct_ref_cls"])
    known = prototypes(reference, names[expected["nct_ref_label"]], names.tolist())
    np.testing.assert_allclose(known, expected["nct_prototypes"], atol=2e-5, rtol=0)
    assert (known == 0).all(axis=1).sum() == 1

    targets = expected["nct_target_clid"].astype(str)
    ids = expected["nct_pretrain_clid"].astype(str)
    ids[(expected["nct_voting_sim"] == 0).all(axis=0)] = ""  # upstream has no id for this name
    ppr = small.pagerank(targets, to=ids)
    np.testing.assert_allclose(ppr, expected["nct_voting_sim"], atol=1e-7, rtol=0)

    cells = cell_head(checkpoint, expected["nct_query_cls"])
    units = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (cells, known)]
    np.testing.assert_allclose(100 * units[0] @ units[1].T, expected["nct_affinity"], atol=1e-4, rtol=0)

    scores = novel_type_scores(cells, known, ppr)
    np.testing.assert_allclose(scores, expected["nct_scores"], atol=1e-9, rtol=0)
    np.testing.assert_allclose(softmax(scores, axis=1), expected["nct_prob"], atol=1e-9, rtol=0)
    found, truth = scores.argmax(axis=1), expected["nct_query_label"]
    np.testing.assert_array_equal(found, expected["nct_pred"])
    assert accuracy_score(truth, found) == pytest.approx(float(expected["nct_accuracy"]), abs=1e-12)
    assert f1_score(truth, found, average="macro") == pytest.approx(float(expected["nct_macro_f1"]), abs=1e-12)
