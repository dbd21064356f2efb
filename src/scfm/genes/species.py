"""How gene ids, genomes and species are written: enough to say which species a feature is from."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "OtherSpeciesError",
    "describe_ids",
    "ensembl_species",
    "is_ensembl",
    "is_rodent_symbol",
    "is_species",
    "looks_like_rodent_symbols",
    "species_in",
    "split_genome",
    "strip_version",
]


class Species(NamedTuple):
    """Names and ids of a species."""

    name: str
    latin: str
    ensembl: str
    """Prefix of its Ensembl ids: https://www.ensembl.org/info/genome/stable_ids/prefixes.html"""
    assemblies: str
    """Names of its genome assemblies, without their versions."""
    taxon: int
    """NCBI taxonomy id."""


SPECIES = (
    Species("human", "homo sapiens", "ENSG", "hg GRCh", 9606),
    Species("mouse", "mus musculus", "ENSMUSG", "mm GRCm", 10090),
    Species("rat", "rattus norvegicus", "ENSRNOG", "rn Rnor mRatBN GRCr", 10116),
    Species("rhesus macaque", "macaca mulatta", "ENSMMUG", "rheMac Mmul", 9544),
    Species("chimpanzee", "pan troglodytes", "ENSPTRG", "panTro", 9598),
    Species("zebrafish", "danio rerio", "ENSDARG", "danRer GRCz", 7955),
    Species("pig", "sus scrofa", "ENSSSCG", "susScr Sscrofa", 9823),
    Species("cow", "bos taurus", "ENSBTAG", "bosTau ARS-UCD", 9913),
    Species("chicken", "gallus gallus", "ENSGALG", "galGal GRCg", 9031),
    Species("dog", "canis lupus familiaris", "ENSCAFG", "canFam CanFam", 9615),
    Species("rabbit", "oryctolagus cuniculus", "ENSOCUG", "oryCun OryCun", 9986),
    Species("western clawed frog", "xenopus tropicalis", "ENSXETG", "xenTro", 8364),
    Species("fruit fly", "drosophila melanogaster", "FBgn", "dm BDGP", 7227),
    Species("C. elegans", "caenorhabditis elegans", "WBGene", "ce WBcel", 6239),
)
_BY_PREFIX = {one.ensembl.upper(): one.name for one in SPECIES}
_BY_NAME = {name: one.name for one in SPECIES for name in (one.name.lower(), one.latin, f"ncbitaxon:{one.taxon}")}
_BY_ASSEMBLY = {name: one.name for one in SPECIES for name in one.assemblies.split()}
_ASSEMBLY = rf"({'|'.join(map(re.escape, _BY_ASSEMBLY))})_?\d[\d.]*"
_GENOME = re.compile(rf"(?<![A-Za-z]){_ASSEMBLY}")
_PREFIX = re.compile(rf"{_ASSEMBLY}(?:[-_.](?:pre-?mrna|premRNA|\d{{4}}-[A-Z]))*[-_]+(?=\w)")
_ENSEMBL = re.compile(r"(ENS[A-Z]*G|FBgn|WBGene)R?\d+", re.IGNORECASE)
_VERSION = re.compile(r"\.\d+(_PAR_Y)?$")
_RODENT_SYMBOL = re.compile(r"[A-Z][a-z]+[a-z0-9]*(-[a-z0-9]+)?|Rp[ls]\w+|\d{7}[A-Z]\d\dRik")
_KINDS = {
    "plain numbers (Entrez ids or a running index?)": re.compile(r"\d+"),
    "genomic regions (peaks)": re.compile(r"(chr)?\w+[:-]\d+-\d+"),
    "barcodes of cells (of a matrix of genes × cells? pass adata.T)": re.compile(r"(.*[_:#-])?[ACGT]{12,}([-._:].*)?"),
    "Ensembl ids joined to other names (split them first)": re.compile(
        r"ENS[A-Z]*G\d+(\.\d+)?[_|:;/ -].+|.+[_|:;/ -]ENS[A-Z]*G\d+(\.\d+)?"
    ),
}


class OtherSpeciesError(ValueError):
    """The data are from a species that the model does not know."""

    def __init__(self, message: str, species: str) -> None:
        super().__init__(message)
        self.species = species


def is_ensembl(gene: str) -> bool:
    """Whether an id has the form of an Ensembl (or fly, worm) gene id, with or without a version."""
    return _ENSEMBL.match(gene) is not None


def ensembl_species(gene: str) -> str:
    """Species of an Ensembl (or fly, worm) gene id, or its prefix if the species is not listed; empty for other names."""
    found = _ENSEMBL.match(gene)
    return "" if found is None else _BY_PREFIX.get(found[1].upper(), found[1])


@cache
def species_in(text: str) -> str:
    """Species of a genome or taxon such as ``"mm10"`` or ``"NCBITaxon:10090"``; empty if there is not exactly one."""
    named = _BY_NAME.get(text.strip().lower().replace("_", " "))
    found = {named} if named else {_BY_ASSEMBLY[match[1]] for match in _GENOME.finditer(text)}
    return found.pop() if len(found) == 1 else ""


def is_species(species: str, text: str) -> bool:
    """Whether a text names a species, in English or Latin."""
    names = next(((one.name, one.latin) for one in SPECIES if one.name == species), (species,))
    return any(re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE) for name in names)


def split_genome(gene: str) -> tuple[str, str]:
    """Split a genome prefix from a name: ``mm10___Gapdh`` → ``("mouse", "Gapdh")``.

    Examples
    --------
    >>> split_genome("GRCh38_TP53"), split_genome("TP53")
    (('human', 'TP53'), ('', 'TP53'))
    """
    found = _PREFIX.match(gene)
    return ("", gene) if found is None else (_BY_ASSEMBLY[found[1]], gene[found.end() :])


def strip_version(gene: str) -> str:
    """Take the version off an Ensembl gene id: ``ENSG00000000003.14`` → ``ENSG00000000003``."""
    return _VERSION.sub("", gene) if is_ensembl(gene) else gene


def is_rodent_symbol(gene: str) -> bool:
    """Whether a name is written as mouse and rat symbols are: ``Gapdh``, ``Cd3e``, not ``GAPDH``."""
    return _RODENT_SYMBOL.fullmatch(gene) is not None


def looks_like_rodent_symbols(ids: Iterable[str]) -> bool:
    """Whether most ids that are no Ensembl ids are written as mouse and rat symbols are."""
    symbols = [gene for gene in ids if gene and not is_ensembl(gene)]
    return sum(map(is_rodent_symbol, symbols)) > len(symbols) / 2


def describe_ids(ids: Iterable[str]) -> str:
    """Say in words what gene ids look like, most frequent kind first.

    Examples
    --------
    >>> describe_ids(["ENSMUSG00000051951", "ENSMUSG00000089699"])
    'mouse Ensembl ids'
    """
    genes = [gene for gene in ids if gene]
    if not genes:
        return "empty strings"
    symbols = "mouse or rat gene symbols" if looks_like_rodent_symbols(genes) else "gene symbols or other names"
    return Counter(_kind(gene) or symbols for gene in genes).most_common(1)[0][0]


def _kind(gene: str) -> str:
    found = next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(gene)), "")
    species = ensembl_species(gene)
    return f"{species} Ensembl ids" if species and not found else found
