"""Types that the reference does not have."""

from __future__ import annotations

import numpy as np
import pytest

from scfm.annotate import Reference, predict_types
from scfm.ontology import CellOntology

NAMES = {
    "CL:0000000": "cell", "CL:0000542": "lymphocyte", "CL:0000084": "T cell", "CL:0000624": "CD4 T cell",
    "CL:0000625": "CD8 T cell", "CL:0000236": "B cell", "CL:0000766": "myeloid leukocyte", "CL:0000576": "monocyte",
    "CL:0000235": "macrophage",
}  # fmt: skip
EDGES = [
    ("CL:0000542", "CL:0000000"), ("CL:0000766", "CL:0000000"), ("CL:0000084", "CL:0000542"),
    ("CL:0000236", "CL:0000542"), ("CL:0000624", "CL:0000084"), ("CL:0000625", "CL:0000084"),
    ("CL:0000576", "CL:0000766"), ("CL:0000235", "CL:0000766"),
]  # fmt: skip
KNOWN = ["CL:0000084", "CL:0000236", "CL:0000576", "CL:0000624"]


@pytest.fixture
def ontology() -> CellOntology:
    return CellOntology(list(NAMES), EDGES, names=NAMES)


@pytest.fixture
def reference() -> Reference:
    """T cells, B cells, monocytes, CD4 T cells, which share a direction with the T cells."""
    rng = np.random.default_rng(0)
    codes = np.arange(80) % 4
    means = np.array([[5.0, 0, 0, 0], [2, 5, 0, 0], [0, 0, 5, 0], [4, 0, 0, 3]])
    return Reference(means[codes] + 0.3 * rng.normal(size=(80, 4)), codes, KNOWN)


def test_relatives_decide(ontology: CellOntology, reference: Reference) -> None:
    query = np.array([[4.5, 0.0, 0.1, 2.0], [0.1, 0.0, 3.0, 0.0]])  # like T cells, like monocytes
    found = predict_types(reference, query, ontology, ["CL:0000625", "CL:0000235"])
    assert found.probabilities.argmax(axis=1).tolist() == [0, 1]
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)
    assert found.limit is None
    assert not found.rejected.any()


def test_rejection_is_calibrated_on_the_known_types(ontology: CellOntology, reference: Reference) -> None:
    limits = [predict_types(reference, reference.values, ontology, KNOWN, reject=share).limit for share in (0.05, 0.5)]
    assert 0 <= limits[1] <= limits[0] <= 2  # type: ignore[operator]
    odd = -reference.values.mean(axis=0, keepdims=True)  # unlike all
    found = predict_types(reference, odd, ontology, ["CL:0000625"], reject=0.05)
    assert found.novelty[0] > found.limit  # type: ignore[operator]
    assert found.rejected.all()


def test_cells_without_a_direction(ontology: CellOntology, reference: Reference) -> None:
    found = predict_types(reference, np.zeros((1, 4)), ontology, ["CL:0000625"], reject=0.1)
    assert np.isnan(found.probabilities).all()
    assert np.isnan(found.novelty).all()
    assert not found.rejected.any()


def test_names_become_one() -> None:
    reference = Reference(np.eye(3), np.array([0, 1, 2]), ["T cell", "B", "T lymphocyte"])
    renamed = reference.renamed({"T cell": "CL:2", "T lymphocyte": "CL:2", "B": "CL:1"})
    assert renamed.labels == ["CL:1", "CL:2"]
    assert renamed.codes.tolist() == [1, 0, 1]


def test_too_few_types(ontology: CellOntology) -> None:
    reference = Reference(np.eye(2), np.array([0, 1]), KNOWN[:2])
    with pytest.raises(ValueError, match=r"which has 2: CL:0000084, CL:0000236. At least 3 are needed"):
        predict_types(reference, np.eye(2), ontology, ["CL:0000625"])
