"""All genes of several data sets, by Ensembl id."""

from __future__ import annotations

import pandas as pd
import pytest

from scfm.genes import Vocabulary, align, union_of

P53, BRCA1, CD3E, CD4 = (f"ENSG0000000000{i}" for i in range(1, 5))
NAMES = Vocabulary.of_names([P53, CD4], ())
NAMES = Vocabulary(NAMES.genes, NAMES.tokens, None, {}, {"ENSG00000099999": P53}, {"TP53": P53, "CD4": CD4})


def table(index: list[str], **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=index)


def test_ids_of_all_tables() -> None:
    tables = [
        table([f"{BRCA1}.4", "ENSG00000099999", "ENSMUSG00000000001", "ERCC-00002"]),
        table(["CD3E", "TP53"], gene_ids=[CD3E, P53]),
        table(["CD4", "XYZ"]),
    ]
    found = union_of(tables, names=NAMES)
    assert found.genes.tolist() == sorted([P53, BRCA1, CD3E, CD4])
    assert found.tokens.tolist() == [0, 1, 2, 3]
    assert dict(found.symbols) == {"TP53": P53, "CD4": CD4, "CD3E": CD3E}
    assert found.mapping == {"ENSG00000099999": P53}
    assert align(tables[0].iloc[[0, 1, 3]], found).tokens.tolist() == [1, 0, -2]
    assert align(tables[2], found).tokens.tolist() == [3, -1]  # a symbol of another table


def test_what_symbols_mean() -> None:
    """Those of ``names`` come first, those of columns before names in the index, and none that stands for two genes."""
    tables = [
        table(
            ["BRCA1-1", "AB", "AB-2", "TP53"],
            gene_ids=[BRCA1, CD3E, CD4, CD4],
            gene_symbols=["BRCA1", "AB", "AB", "TP53"],
        ),
        table(["BRCA1"], gene_ids=[CD3E]),
    ]
    assert dict(union_of(tables, names=NAMES).symbols) == {"TP53": P53, "CD4": CD4, "BRCA1": BRCA1}


def test_features_that_are_no_genes_and_a_given_column() -> None:
    var = table(
        ["CD3E", "CD4"],
        gene_ids=[CD3E, CD4],
        feature_types=["Gene Expression", "Antibody Capture"],
        other=[P53, BRCA1],
    )
    assert union_of([var]).genes.tolist() == [CD3E]
    assert union_of([var.drop(columns="feature_types")], gene_key="other").genes.tolist() == [P53, BRCA1]
    mouse = table(["ENSMUSG00000000001", CD4])
    assert union_of([mouse], species="mouse").genes.tolist() == ["ENSMUSG00000000001"]


def test_no_ids() -> None:
    with pytest.raises(ValueError, match=r"No file has Ensembl ids of human genes.*names=.*scfm-mini.*gene_key="):
        union_of([table(["TP53"])])
