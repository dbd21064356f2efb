"""Genes by any of their names."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scfm.genes import Vocabulary, columns_of

CD3D, LYZ, NKG7 = "ENSG00000167286", "ENSG00000090382", "ENSG00000105374"
VOCABULARY = Vocabulary(
    np.array([CD3D, LYZ, NKG7]),
    np.array([0, 1, 2], np.int32),
    mapping={"ENSG00000000001": LYZ},
    symbols={"CD3D": CD3D, "LYZ": LYZ, "NKG7": NKG7},
)


def var(index: list[str], **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=index)


def found(genes: list[str] | str | None, table: pd.DataFrame, tokens: list[int]) -> list[int]:
    return columns_of(genes, table, np.array(tokens, np.int32), VOCABULARY).tolist()


def test_all_genes() -> None:
    assert found(None, var(["x", "y"]), [-1, -1]) == [0, 1]


@pytest.mark.parametrize(
    "name", [CD3D, f"{CD3D}.7", CD3D.lower(), "CD3D", "cd3d"], ids=["id", "version", "case", "symbol", "any case"]
)
def test_names_that_the_model_knows(name: str) -> None:
    assert found(name, var(["other", CD3D]), [-1, 0]) == [1]


def test_an_alias_of_the_model() -> None:
    assert found(["ENSG00000000001"], var([CD3D, LYZ]), [0, 1]) == [1]


def test_names_of_the_data_come_first() -> None:
    """A name of the data that means another gene to the model is the gene of the data."""
    table = var(["LYZ", "b"], gene_symbols=["mine", "CD3D"])
    assert found(["LYZ", "CD3D", "mine"], table, [0, 1]) == [0, 1, 0]


def test_a_gene_without_a_token() -> None:
    assert found(["spike", CD3D], var([CD3D, "spike"]), [0, -1]) == [1, 0]


def test_the_first_of_several_columns() -> None:
    assert found(["CD3D", "twice"], var(["a", "twice", "b", "twice"]), [-1, -1, 0, 0]) == [2, 1]


def test_missing_names_in_a_column_are_no_names() -> None:
    table = pd.DataFrame({"gene_symbols": [None, "LYZ"]}, index=["a", "b"])
    with pytest.raises(KeyError, match="'nan'"):
        found(["nan"], table, [-1, 1])


@pytest.mark.parametrize(
    ("genes", "match"),
    [
        (
            ["CD3D", "NKG8"],
            "1 genes are not in the data by any of their names, such as 'NKG8'; close to it: 'NKG9'",
        ),
        (["??", "!!"], r"2 genes are not .* such as '\?\?'. var_names look like \['ENSG"),
        (["NKG7"], r"1 genes are not in the data .* such as 'NKG7' \(which the model knows\); close to it: 'NKG9'"),
        (["CD3D", ""], "1 genes are not in the data .* such as ''"),
    ],
)
def test_names_that_are_not_found(genes: list[str], match: str) -> None:
    with pytest.raises(KeyError, match=match):
        found(genes, var([CD3D, LYZ], gene_symbols=["NKG9", None]), [0, 1])
