"""Which features are genes, and of which species."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scfm.genes import OtherSpeciesError, Vocabulary, align

SYMBOLS = ["CD3D", "LYZ", "NKG7", "CD4", "TP53", "MS4A1", "GNLY", "CD8A", "PPBP", "CST3"]
IDS = [f"ENSG{i:011d}" for i in range(1, 11)]
HUMAN = Vocabulary(
    np.array(IDS), np.arange(10, dtype=np.int32), symbols=dict(zip(SYMBOLS, IDS, strict=True)), species="human"
)
MOUSE_IDS = [name.replace("ENSG", "ENSMUSG") for name in IDS]
BOTH = Vocabulary.of_names([*IDS, *MOUSE_IDS], [], species="human and mouse")


def var(index: list[str], **columns: list[Any]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=index)


@pytest.mark.parametrize(
    ("column", "gene", "other"),
    [
        ("feature_types", "Gene Expression", "Antibody Capture"),
        ("feature_types", "Gene Expression", "CRISPR Guide Capture"),
        ("feature_types", "Gene Expression", "a kind that comes later"),
        ("modality", "rna", "prot"),
        ("Feature_Type", "gene", "peaks"),
        ("feature_biotype", "gene", "spike-in"),
    ],
)
def test_what_a_column_calls_something_else_is_left_out(column: str, gene: str, other: str) -> None:
    table = var([*SYMBOLS, "CD4-1"], feature_name=[*SYMBOLS, "CD4"], **{column: [gene] * 10 + [other]})
    with pytest.warns(UserWarning, match=rf"1 of 11 features are not genes.*var\['{column}'\] is '{other}'") as caught:
        found = align(table, HUMAN)
    assert len(caught) == 1
    assert found.tokens.tolist() == [*range(10), -2]
    report = found.report
    assert (report.n_genes, report.matched, report.unmatched, report.not_genes) == (10, 10, 0, 1)
    assert "1 other features are not genes and are left out" in str(report)


def test_peaks_that_no_model_would_take_are_counted_without_a_warning() -> None:
    table = var([*SYMBOLS, "chr1:100-500"], feature_types=["Gene Expression"] * 10 + ["Peaks"])
    assert align(table, HUMAN).report.not_genes == 1


@pytest.mark.parametrize(
    "kinds",
    [
        ["protein_coding"] * 6 + ["lncRNA"] * 4,  # biotypes
        ["Gene Expression"] * 9 + [None],
        [None] * 10,
    ],
)
def test_a_column_that_says_nothing_of_the_kind(kinds: list[Any]) -> None:
    assert align(var(SYMBOLS, feature_type=kinds), HUMAN).tokens.tolist() == list(range(10))


@pytest.mark.parametrize("kind", ["Antibody Capture", "Peaks", "protein"])
def test_no_feature_is_a_gene(kind: str) -> None:
    with pytest.raises(
        ValueError, match=f"No feature.*is a gene: var\\['feature_types'\\] is '{kind}' for 10 features"
    ):
        align(var(SYMBOLS, feature_types=[kind] * 10), HUMAN)


def test_spike_ins_are_left_out_and_genes_of_that_name_are_not() -> None:
    report = align(var(["CD3D", "ERCC1", "ERCC-00002", "ERCC-00130"]), HUMAN).report
    assert (report.not_genes, report.unmatched, report.examples_unmatched) == (2, 1, ("ERCC1",))


@pytest.mark.parametrize("prefix", ["GRCh38_", "hg19_", "hg38___", "GRCh38-2020-A_", "GRCh38_premrna_", "GRCh38-"])
@pytest.mark.parametrize("names", [SYMBOLS, IDS])
def test_a_genome_before_the_names(prefix: str, names: list[str]) -> None:
    assert align(var([prefix + name for name in names]), HUMAN).tokens.tolist() == list(range(10))


@pytest.mark.parametrize(
    "told",
    [
        {"genome": ["GRCh38"] * 10 + ["mm10"] * 10},
        {"genome": ["GRCh38-2024-A"] * 10 + ["GRCm39-2024-A"] * 10},
        {"feature_reference": ["NCBITaxon:9606"] * 10 + ["NCBITaxon:10090"] * 10},
        {"organism": ["Homo sapiens"] * 10 + ["Mus musculus"] * 10},
        {"gene_ids": [*IDS, *MOUSE_IDS]},
        {},
    ],
)
def test_genes_of_another_species_are_left_out_where_something_tells_them(told: dict[str, list[str]]) -> None:
    prefixes = ("", "") if told else ("hg19_", "mm10_")
    names = [prefixes[0] + name for name in SYMBOLS] + [prefixes[1] + name for name in SYMBOLS]
    with pytest.warns(UserWarning, match=r"10 of 20 genes are left out: they are from mouse") as caught:
        found = align(var(names, **told), HUMAN)
    assert len(caught) == 1
    assert found.tokens.tolist() == [*range(10), *[-2] * 10]
    assert (found.report.n_genes, found.report.other_species) == (10, 10)


def test_a_model_of_both_species_takes_both() -> None:
    names = [f"GRCh38_{name}" for name in IDS] + [f"mm10___{name}" for name in MOUSE_IDS]
    assert align(var(names, genome=["GRCh38"] * 10 + ["mm10"] * 10), BOTH).tokens.tolist() == list(range(20))


def test_a_genome_that_names_both_tells_nothing() -> None:
    assert align(var(SYMBOLS, genome=["GRCh38_and_mm10"] * 10), HUMAN).report.matched == 10


@pytest.mark.parametrize(
    ("table", "species"),
    [
        (var(SYMBOLS, gene_ids=MOUSE_IDS), "mouse"),
        (var(MOUSE_IDS, feature_name=SYMBOLS), "mouse"),
        (var(SYMBOLS, gene_ids=MOUSE_IDS[:3] + [None] * 7), "mouse"),
        (var(SYMBOLS, ensembl_id=[name.replace("ENSG", "ENSSSCG") for name in IDS]), "pig"),
        (var(SYMBOLS, ensembl_id=[name.replace("ENSG", "ENSXYZG") for name in IDS]), "ENSXYZG"),
        (var(SYMBOLS, genome=["mm10"] * 10), "mouse"),
        (var([name.capitalize() for name in SYMBOLS]), "mouse"),
    ],
)
def test_all_genes_are_of_another_species(table: pd.DataFrame, species: str) -> None:
    with pytest.raises(OtherSpeciesError, match=f"No gene of the data is known.*{species}") as caught:
        align(table, HUMAN)
    assert caught.value.species == species


def test_columns_that_contradict_each_other() -> None:
    table = var(IDS, gene_ids=MOUSE_IDS)
    with pytest.raises(
        OtherSpeciesError, match=r"contradict.*var\['gene_ids'\] holds mouse.*var_names holds human.*gene_key="
    ):
        align(table, HUMAN)
    assert align(table, HUMAN, gene_key="index").report.matched == 10


def test_a_stray_gene_of_another_species_is_no_reason_to_refuse() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = align(var([*SYMBOLS, "XIST"], gene_ids=[*[None] * 10, MOUSE_IDS[0]]), HUMAN)
    assert found.tokens.tolist() == [*range(10), -2]
    assert found.report.other_species == 1


def test_symbols_of_two_species_are_refused() -> None:
    mixed = [*SYMBOLS, *map(str.capitalize, SYMBOLS)]
    with pytest.raises(
        ValueError, match=r"mixes human symbols \(10 such as CD3D.*mouse or rat symbols \(10 such as Cd3d"
    ):
        align(var(mixed), HUMAN)
    with_one = align(var([*SYMBOLS, "Lyz"]), HUMAN)
    assert with_one.tokens.tolist() == [*range(10), -1]


@pytest.mark.parametrize("column", ["Accession", "Gene ID"])
@pytest.mark.parametrize("known", [0, 1])
def test_ids_in_a_column_of_an_unusual_name_are_named(column: str, known: int) -> None:
    table = var([*SYMBOLS[:known], *[f"row {i}" for i in range(known, 10)]], chromosome=["1"] * 10, **{column: IDS})
    hint = rf"var\['{column}'\] holds 10 genes of the model: gene_key='{column}'"
    if known:
        with pytest.warns(UserWarning, match=f"Only 1 of 10.*{hint}"):
            align(table, HUMAN)
    else:
        with pytest.raises(ValueError, match=hint):
            align(table, HUMAN)


def test_columns_without_a_name_are_not_looked_at() -> None:
    with pytest.raises(ValueError, match="No gene of the data is known"):
        align(pd.DataFrame({0: IDS}, index=[f"row {i}" for i in range(10)]), HUMAN)


def test_a_column_that_is_there_twice() -> None:
    once = var([f"row {i}" for i in range(10)], gene_ids=IDS)
    assert align(pd.concat([once, once], axis=1), HUMAN).report.matched == 10
    other = once.assign(gene_ids=IDS[::-1])
    with pytest.raises(ValueError, match="var has 2 columns named 'gene_ids', which differ"):
        align(pd.concat([once, other], axis=1), HUMAN)
