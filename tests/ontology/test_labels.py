from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scfm.ontology import CellOntology

ONTO = CellOntology(
    ["CL:1", "CL:2", "CL:3", "CL:4"],
    [],
    names={"CL:1": "T cell", "CL:2": "B cell", "CL:3": "CD4-positive, alpha-beta T cell", "CL:4": "leukocyte"},
    synonyms={
        "CL:1": ["T-cell", "T lymphocyte", "white cell"],
        "CL:2": ["B lymphocyte", "leukocyte"],  # a name of another term
        "CL:4": ["white  cell", "CL:2"],  # of two terms; the id of another term
    },
    replaced={
        "CL:10": ["CL:11"],
        "CL:11": ["CL:10", "CL:1"],  # round, and out
        "CL:12": [],
        "CL:13": ["CL:1", "CL:2"],
        "CL:14": ["GO:7"],
        "CL:4": ["CL:1"],  # still there
    },
)


@pytest.mark.parametrize(
    ("label", "id"),
    [
        ("CL:1", "CL:1"),
        ("cl:1", "CL:1"),
        ("T cell", "CL:1"),
        ("  t  CELL ", "CL:1"),
        ("t lymphocyte", "CL:1"),
        ("cd4-positive, ALPHA-beta T cell", "CL:3"),
        ("leukocyte", "CL:4"),
        ("CL:2", "CL:2"),
        ("CL:4", "CL:4"),
        ("CL:10", "CL:1"),
        ("cl:11", "CL:1"),
    ],
)
def test_found(label: str, id: str) -> None:
    assert ONTO.resolve([label]).tolist() == [id]


def test_order_and_containers() -> None:
    labels = ["B cell", "T cell", "B cell"]
    for given in (labels, iter(labels), np.array(labels), pd.Series(labels, dtype="category"), pd.Index(labels)):
        assert ONTO.resolve(given).tolist() == ["CL:2", "CL:1", "CL:2"]
    assert ONTO.resolve([]).shape == (0,)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("T cel", r"'T cel' is unknown \(closest: 'T cell' CL:1"),
        ("hepatocyte xyz", r"'hepatocyte xyz' is unknown\."),
        ("white cell", "'white cell' is ambiguous: 'T cell' CL:1, 'leukocyte' CL:4"),
        ("CL:13", "'CL:13' is ambiguous: 'T cell' CL:1, 'B cell' CL:2"),
        ("CL:12", "'CL:12' is obsolete, and no term of this ontology replaces it"),
        ("CL:14", "'CL:14' is obsolete"),
        ("CL:99", "'CL:99' is unknown"),
        ("", "'' is unknown"),
    ],
)
def test_not_found(label: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"1 of 2 labels do not name one term of this ontology: {message}"):
        ONTO.resolve(["B cell", label, label])


def test_all_problems_are_named_up_to_ten() -> None:
    with pytest.raises(ValueError, match="2 of 3 labels .*'a' is unknown.*'b' is unknown"):
        ONTO.resolve(["a", "T cell", "b"])
    with pytest.raises(ValueError, match=r"2 of 3 labels are missing \(NaN or None\)"):
        ONTO.resolve(["T cell", None, np.nan])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="'x9' .* and 5 more"):
        ONTO.resolve([f"x{i}" for i in range(15)])


def test_one_string_is_not_a_list() -> None:
    with pytest.raises(TypeError, match=r"resolve\(\['T cell'\]\)"):
        ONTO.resolve("T cell")
