"""Joining the tables of a drug screen."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scfm.datasets._drug_response import TCGA_TYPES, drug_response

if TYPE_CHECKING:
    from pathlib import Path

NAN = float("nan")


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    """Four lines with expression, of which one was not screened and one is not annotated."""
    return {
        "expression": pd.DataFrame(
            {"TP53": [1.0, 2, 3, 4], "MYC": [0.0, 5, 0, 6]}, index=["L4", "L2", "L1", "not screened"]
        ),
        "ic50": pd.DataFrame(
            {"L1": [0.5, 1, NAN], "L2": [NAN, -2, 3], "L4": [9.0, 9, 9], "no expression": [1.0, 1, 1]},
            index=["GDSC:7", "GDSC:8", "GDSC:9"],
        ),
        "annotations": pd.DataFrame(
            {
                "depMapID": ["L2", "L1", "not screened", "L2", "no expression"],
                "tcga_code": ["LUAD", "SARC", "LUAD", "COAD/READ", "OV"],
            }
        ),
    }


@pytest.fixture
def drugs() -> pd.DataFrame:
    return pd.DataFrame(
        {"drug_id": [9, 8, 7], "Name": ["c", "b", "a"], "PubCHEM": ["123", "several", "45"], "Count": [1, 1, 1]}
    )


def test_join(tables: dict[str, pd.DataFrame]) -> None:
    adata = drug_response(**tables)
    assert adata.obs_names.tolist() == ["L1", "L2"]
    assert adata.var_names.tolist() == ["TP53", "MYC"]
    np.testing.assert_array_equal(adata.X, np.float32([[3, 0], [2, 5]]))
    assert adata.X.dtype == np.float32
    assert adata.obs["tcga"].cat.categories.tolist() == TCGA_TYPES
    assert pd.isna(adata.obs["tcga"].iloc[0])  # not among the 25
    assert adata.obs["tcga"].iloc[1] == "COAD/READ"  # the last row of L2
    expected = pd.DataFrame(
        [[0.5, 1.0, NAN], [NAN, -2.0, 3.0]], index=["L1", "L2"], columns=["GDSC:7", "GDSC:8", "GDSC:9"]
    )
    pd.testing.assert_frame_equal(adata.obsm["ic50"], expected)
    assert not adata.uns


def test_drugs_with_a_number(tables: dict[str, pd.DataFrame], drugs: pd.DataFrame) -> None:
    adata = drug_response(**tables, drugs=drugs)
    assert adata.obsm["ic50"].columns.tolist() == ["GDSC:7", "GDSC:9"]
    assert adata.uns["drugs"].to_dict("index") == {
        "GDSC:7": {"name": "a", "pubchem": "45"},
        "GDSC:9": {"name": "c", "pubchem": "123"},
    }
    with pytest.raises(ValueError, match=r"drugs has no 'GDSC:7'; its drug_id are '9', '8'"):
        drug_response(**tables, drugs=drugs[:2])


def test_files(tables: dict[str, pd.DataFrame], drugs: pd.DataFrame, tmp_path: Path) -> None:
    tables["expression"].to_csv(tmp_path / "expression.csv")
    tables["ic50"].to_csv(tmp_path / "ic50.csv", quoting=csv.QUOTE_ALL)
    tables["annotations"].to_csv(tmp_path / "annotations.txt", sep="\t", index=False, lineterminator="\r\n")
    drugs.to_csv(tmp_path / "drugs.csv", index=False)
    paths = {name: tmp_path / f"{name}.csv" for name in ("expression", "ic50", "drugs")}
    read = drug_response(**paths, annotations=str(tmp_path / "annotations.txt"))
    given = drug_response(**tables, drugs=drugs)
    for one, other in ((read.to_df(), given.to_df()), (read.obs, given.obs)):
        pd.testing.assert_frame_equal(one, other)
    pd.testing.assert_frame_equal(read.obsm["ic50"], given.obsm["ic50"])
    read.write_h5ad(tmp_path / "screen.h5ad")
    back = ad.read_h5ad(tmp_path / "screen.h5ad")
    pd.testing.assert_frame_equal(back.obs, given.obs)
    pd.testing.assert_frame_equal(back.obsm["ic50"], given.obsm["ic50"])
    pd.testing.assert_frame_equal(back.uns["drugs"], given.uns["drugs"], check_names=False)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ic50", lambda t: t.T, "share no line: rows of expression are 'L4', 'L2', 'L1' and 1 more, .*transposed"),
        ("expression", lambda t: pd.concat([t, t[:1]]), "expression holds 'L4' twice"),
        ("expression", lambda t: t.set_axis(["A", "A"], axis=1), "expression holds 'A' twice"),
        ("expression", lambda t: t - 3, "expression of 'MYC' in 'L1' is -3.0"),
        ("expression", lambda t: t.where(t != 2), "expression of 'TP53' in 'L2' is nan"),
        ("expression", lambda t: t.assign(MYC="high"), "expression must hold numbers"),
    ],
)
def test_wrong_tables(tables: dict[str, pd.DataFrame], name: str, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drug_response(**tables | {name: change(tables[name])})


def test_missing_columns(tables: dict[str, pd.DataFrame], drugs: pd.DataFrame) -> None:
    with pytest.raises(KeyError, match=r"annotations has no column \['tcga_code'\]"):
        drug_response(**tables | {"annotations": tables["annotations"][["depMapID"]]})
    with pytest.raises(KeyError, match=r"drugs has no column \['PubCHEM'\]"):
        drug_response(**tables, drugs=drugs[["drug_id", "Name"]])


def test_published_tables(shared: Path) -> None:
    """All that was measured in annotated lines is there, under upstream's cancer types."""
    data = shared / "reference" / "sccello_data"
    with (data / "GDSC_IC50.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    types = {}
    for row in (data / "Cell_lines_annotations_20181226.txt").read_text(encoding="utf-8").splitlines()[1:]:
        types[row.split("\t")[1]] = row.strip().split("\t")[-1]
    lines = rows[0][1:]
    expression = pd.DataFrame({"TP53": np.arange(len(lines))}, index=lines[::-1])
    pairs = [
        (line, row[0], float(value), types[line])
        for row in rows[1:]
        for line, value in zip(lines, row[1:], strict=True)
        if value != "NA" and line in types and types[line] in TCGA_TYPES
    ]
    adata = drug_response(expression, data / "GDSC_IC50.csv", data / "Cell_lines_annotations_20181226.txt")
    known = adata[adata.obs["tcga"].notna()]
    ours = [
        (line, drug, value, known.obs["tcga"].at[line])
        for drug, column in known.obsm["ic50"].items()
        for line, value in column.dropna().items()
    ]
    assert ours == pairs
    assert len(ours) > 90_000
    assert adata.to_df()["TP53"].to_dict() == expression.loc[adata.obs_names, "TP53"].to_dict()
