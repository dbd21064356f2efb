from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scfm.genes import Vocabulary, align, match_upstream


@pytest.fixture
def vocabulary() -> Vocabulary:
    genes = [f"ENSG{i:011d}" for i in (3, 5, 7, 9)]
    return Vocabulary(
        np.array(genes),
        np.arange(2, 6, dtype=np.int32),
        np.array([1.0, 2.0, 3.0, 4.0]),
        {"<pad>": 0, "<mask>": 1},
        {gene: gene for gene in genes} | {"ENSG00000000077": genes[2], "CD3E": genes[0]},
        {"CD3E": genes[0], "C1orf112": genes[1], "TP53": genes[3]},
    )


def var(ids: list[str], **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(ids))


@pytest.mark.parametrize(
    ("gene", "token", "route"),
    [
        ("ENSG00000000003", 2, "by_id"),
        ("ensg00000000003", 2, "by_id"),
        ("ENSG00000000003.14", 2, "by_version"),
        ("ENSG00000000003.14_PAR_Y", 2, "by_version"),
        ("ENSG00000000077", 4, "by_alias"),
        ("ENSG00000000077.2", 4, "by_alias"),
        ("CD3E", 2, "by_symbol"),
        ("cd3e", 2, "by_symbol"),
        ("C1orf112", 3, "by_symbol"),
        ("C1ORF112", 3, "by_symbol"),
    ],
)
def test_every_route(vocabulary: Vocabulary, gene: str, token: int, route: str) -> None:
    found = align(var([gene]), vocabulary)
    assert found.tokens.tolist() == [token]
    assert getattr(found.report, route) == 1
    assert found.report.matched == 1


def test_report_counts_what_it_says(vocabulary: Vocabulary) -> None:
    ids = ["ENSG00000000003", "ENSG00000000003.1", "CD3E", "ENSG00000000005", "ENSG00000099999", "TP53"]
    report = align(var(ids), vocabulary).report
    assert (report.n_genes, report.matched, report.unmatched, report.merged, report.n_tokens) == (6, 5, 1, 2, 3)
    assert report.by_id + report.by_version + report.by_alias + report.by_symbol == report.matched
    assert report.examples_unmatched == ("ENSG00000099999",)
    assert "5 of 6 genes in var_names" in str(report)


def test_the_place_with_most_matches_is_taken(vocabulary: Vocabulary) -> None:
    table = var(["a", "b"], feature_name=["CD3E", "x"], gene_ids=["ENSG00000000003", "ENSG00000000005"])
    assert align(table, vocabulary).report.gene_key == "gene_ids"
    assert align(table, vocabulary, gene_key="feature_name").report.matched == 1
    assert align(var(["CD3E", "TP53"], gene_ids=["?", "?"]), vocabulary).report.gene_key == "index"


def test_missing_ids_do_not_match(vocabulary: Vocabulary) -> None:
    table = pd.DataFrame({"ensembl_id": ["ENSG00000000003", None, np.nan]}, index=["a", "b", "c"])
    assert align(table, vocabulary).tokens.tolist() == [2, -1, -1]


def test_unknown_gene_key(vocabulary: Vocabulary) -> None:
    with pytest.raises(KeyError, match="not a column of var; found"):
        align(var(["CD3E"]), vocabulary, gene_key="ensembl")


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (["ENSMUSG00000051951", "ENSMUSG00000089699"], "mouse Ensembl ids"),
        (["Cd3e", "Gapdh", "Actb"], "mouse or rat gene symbols"),
        (["0", "1", "2"], "plain numbers"),
        (["foo", "bar"], "gene symbols or other names"),
    ],
)
def test_no_match_says_what_the_ids_are(vocabulary: Vocabulary, ids: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){words}.*expects human Ensembl ids"):
        align(var(ids), vocabulary)


def test_few_matches_warn(vocabulary: Vocabulary) -> None:
    with pytest.warns(UserWarning, match="Only 1 of 9 genes"):
        align(var(["CD3E", *"abcdefgh"]), vocabulary)


def test_upstream_keeps_exact_duplicates_apart_and_versions_on(vocabulary: Vocabulary) -> None:
    gene = "ENSG00000000003"
    found = match_upstream(var([gene, gene, f"{gene}.1", "TP53"]), vocabulary)
    assert found.tokens.tolist() == [2, 2, -1, -1]
    assert not found.sums


def test_upstream_adds_up_where_an_alias_meets_its_gene(vocabulary: Vocabulary) -> None:
    found = match_upstream(var(["ENSG00000000007", "ENSG00000000077", "CD3E"]), vocabulary)
    assert found.tokens.tolist() == [4, 4, 2]
    assert found.sums


def test_upstream_reads_ensembl_id(vocabulary: Vocabulary) -> None:
    table = var(["a", "b"], ensembl_id=["ENSG00000000003", "x"])
    assert match_upstream(table, vocabulary).tokens.tolist() == [2, -1]
    with pytest.raises(ValueError, match="No gene of the data"):
        match_upstream(table, vocabulary, gene_key="index")
