"""What tells a species."""

from __future__ import annotations

import pytest

from scfm.genes.species import describe_ids, is_rodent_symbol, is_species, species_in, split_genome


@pytest.mark.parametrize(
    ("text", "species"),
    [
        ("GRCh38", "human"),
        ("hg19", "human"),
        ("refdata-gex-GRCm39-2024-A", "mouse"),
        ("mm10", "mouse"),
        ("Rnor_6.0", "rat"),
        ("BDGP6.32", "fruit fly"),
        ("WBcel235", "C. elegans"),
        ("danRer11", "zebrafish"),
        ("NCBITaxon:10090", "mouse"),
        ("Mus_musculus", "mouse"),
        ("Human", "human"),
        ("GRCh38_and_mm10", ""),
        ("comm10", ""),
        ("", ""),
    ],
)
def test_names_of_genomes_and_species(text: str, species: str) -> None:
    assert species_in(text) == species


@pytest.mark.parametrize("name", ["HLA-A", "DM1-AS", "CE1", "RN7SK", "mt-Co1", "MM1_X", "Y_RNA", "GRCh38"])
def test_symbols_without_a_genome_before_them(name: str) -> None:
    assert split_genome(name) == ("", name)


def test_texts_about_species() -> None:
    text = "human, mouse and C. elegans"
    assert [is_species(name, text) for name in ("mouse", "C. elegans", "rat", "fruit fly")] == [
        True,
        True,
        False,
        False,
    ]
    assert is_species("mouse", "mus musculus")


@pytest.mark.parametrize(
    ("name", "rodent"),
    [
        ("Gapdh", True),
        ("Il2", True),
        ("Gm1234", True),
        ("H2-K1", False),
        ("C1orf112", False),
        ("GAPDH", False),
        ("gapdh", False),
    ],
)
def test_how_rodent_symbols_are_written(name: str, rodent: bool) -> None:
    assert is_rodent_symbol(name) is rodent


def test_peaks_are_called_so() -> None:
    assert describe_ids(["chr1:100-500", "GL000194.1-55758-56597", "chr2-5-9"]) == "genomic regions (peaks)"
