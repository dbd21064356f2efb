"""Tables of marker genes, and the sets that upstream makes of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from scfm.metrics import read_markers
from scfm.weights.pickles import read_dictionary

if TYPE_CHECKING:
    from pathlib import Path

MARKERS = (
    "cellType\tgeneMarker\nB cell\tCD79A,MS4A1\nb2\tMS4A1,CD19\nType I pneumocyte\tAGER\nT helper1 (Th1) cell\tTBX21\n"
)
ALIGNMENT = (
    'dataset,original label,aligned label,quality\nGSE1,B cells,"B cell,b2,no such type",0.5\nGSE1,dark,not found,0\n'
    "GSE1,,not found,0\nGSE2,B cells,b2,1\nGSE130148,Type 1,T helper1 (Th1) cell,0.4\n"
)
SYMBOLS = "id,name\nE1,MS4A1\nE2,CD79A\nE3,MS4A1\nE4,AGER\nE5,TBX21\n"


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    paths = {}
    for name, text in (("path", MARKERS), ("alignment", ALIGNMENT), ("symbols", SYMBOLS)):
        paths[name] = tmp_path / name
        paths[name].write_text(text, encoding="utf-8")
    return paths


def test_cell_types(tables: dict[str, Path]) -> None:
    assert read_markers(tables["path"])["b2"] == ["CD19", "MS4A1"]
    ids = read_markers(tables["path"], symbols=tables["symbols"])
    assert ids["B cell"] == ["E1", "E2", "E3"]
    assert ids["b2"] == ["E1", "E3"]
    assert read_markers(tables["path"], symbols=tables["symbols"], compat="upstream")["B cell"] == ["E2", "E3"]


def test_labels(tables: dict[str, Path]) -> None:
    assert read_markers(tables["path"], alignment=tables["alignment"], dataset="GSE1_3") == {
        "B cells": ["CD19", "CD79A", "MS4A1"],
        "dark": [],
    }
    assert read_markers(**tables, dataset="GSE2", compat="upstream") == {"B cells": ["E3"]}


def test_lung_labels(tables: dict[str, Path]) -> None:
    assert read_markers(**tables, dataset="GSE130148") == {"Type 1": ["E4"]}
    assert read_markers(**tables, dataset="GSE130148", compat="upstream") == {"Type 1": ["E5"]}


def test_wrong_input(tables: dict[str, Path]) -> None:
    with pytest.raises(KeyError, match=r"no column \['cellType', 'geneMarker'\]; found \['id,name'\]"):
        read_markers(tables["symbols"])
    with pytest.raises(ValueError, match=r"has no data set 'GSE7'; it has \['GSE1', 'GSE130148', 'GSE2'\]"):
        read_markers(**tables, dataset="GSE7")
    with pytest.raises(ValueError, match="need both"):
        read_markers(**tables)
    with pytest.raises(ValueError, match="compat='up' is not known"):
        read_markers(tables["path"], compat="up")  # type: ignore[arg-type]


def test_equal_to_upstream(shared: Path) -> None:
    reference = shared / "reference"
    data = reference / "sccello_data"
    tables: dict[str, Any] = {
        "path": data / "cellmarkers.tsv",
        "alignment": data / "celllabel2typesquality.csv",
        "symbols": data / "vocab_id2name.csv",
    }
    tokens = read_dictionary(reference / "dictionaries" / "V1" / "token_dictionary_gc30M.pkl", int)
    sets = json.loads((reference / "fixtures/sccello/marker_sets.json").read_text(encoding="utf-8"))
    for dataset, by_label in sets.items():
        right = {
            label: genes for label, genes in by_label.items() if label != "nan" or genes
        }  # the row without a label
        ours = read_markers(**tables, dataset=dataset, compat="upstream")
        assert {label: sorted(tokens[gene] for gene in genes) for label, genes in ours.items()} == right
        corrected = read_markers(**tables, dataset=dataset)
        for label, genes in ours.items():
            if label in {"Type 1", "Type 2"}:
                assert not set(genes) <= set(corrected[label])
                assert len(corrected[label]) > 10
            else:
                assert set(genes) <= set(corrected[label])
