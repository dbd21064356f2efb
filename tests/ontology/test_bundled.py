"""The part of the Cell Ontology that ships with scfm, and what the guide says of it."""

from __future__ import annotations

import ast
import re
from importlib.resources import files
from pathlib import Path

import pytest

import scfm
from scfm.ontology import bundled


@pytest.fixture(scope="module")
def text() -> str:
    return (files("scfm.ontology") / "cl-subset.obo").read_text(encoding="utf-8")


def test_header_and_size(text: str) -> None:
    header, _, terms = text.partition("\n\n")
    assert len(text.encode()) < 60_000
    assert re.search(r"Derived from the Cell Ontology, release \d{4}-\d{2}-\d{2}", header)
    assert "CC BY 4.0" in header
    tags = {line.partition(":")[0] for line in terms.splitlines() if line}
    assert tags == {"[Term]", "id", "name", "synonym", "is_a"}
    assert set(re.findall(r"^synonym: .* (\w+) \[", terms, re.MULTILINE)) == {"EXACT"}


def test_it_is_whole(text: str) -> None:
    onto = bundled()
    assert len(onto) == text.count("[Term]") > 100
    assert len(onto.graph_edges) == text.count("\nis_a: ")
    assert [id for id in onto.ids if not len(onto.parents(id))] == ["CL:0000000"]
    assert all(onto.name_of(id) != id for id in onto.ids)
    assert onto.version is not None
    for labels in (onto.names.tolist(), [label for several in onto.synonyms.values() for label in several]):
        onto.resolve(labels)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("naive thymus-derived CD4-positive, alpha-beta T cell", "T cell"),
        ("CD8-positive, alpha-beta memory T cell", "lymphocyte"),
        ("CD14-low, CD16-positive monocyte", "monocyte"),
        ("natural killer cell", "leukocyte"),
        ("type I pneumocyte", "epithelial cell"),
        ("fibroblast of lung", "fibroblast"),
        ("plasmacytoid dendritic cell", "dendritic cell"),
    ],
)
def test_what_is_a_kind_of_what(lower: str, upper: str) -> None:
    onto = bundled()
    below, above = onto.resolve([lower, upper])
    assert above in onto.ancestors(below)
    assert below in onto.descendants(above)


def test_the_guide_maps_the_labels_of_pbmc68k() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guide" / "ontology.md"
    if not guide.is_file():
        pytest.skip("without documentation")
    found = re.search(r"BULK_LABELS = (\{.*?\n\})", guide.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    mapping = ast.literal_eval(found[1])
    assert set(mapping) == set(scfm.datasets.pbmc68k().obs["bulk_labels"])
    assert len(set(bundled().resolve(mapping.values()))) == len(mapping)
