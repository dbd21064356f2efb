"""What gene ids look like: enough to say which species or id system a file uses."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["describe_ids", "is_ensembl", "looks_like_rodent_symbols", "strip_version"]

# Ensembl stable id prefixes: https://www.ensembl.org/info/genome/stable_ids/prefixes.html
ENSEMBL_SPECIES = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSMMUG": "rhesus macaque",
    "ENSPTRG": "chimpanzee",
    "ENSDARG": "zebrafish",
    "ENSSSCG": "pig",
    "ENSBTAG": "cow",
    "ENSGALG": "chicken",
    "ENSCAFG": "dog",
    "ENSOCUG": "rabbit",
    "ENSXETG": "western clawed frog",
    "FBgn": "fruit fly",
    "WBGene": "C. elegans",
}
_ENSEMBL = re.compile(r"(ENS[A-Z]*G|FBgn|WBGene)R?\d+", re.IGNORECASE)
_VERSION = re.compile(r"\.\d+(_PAR_Y)?$")
_RODENT_SYMBOL = re.compile(r"[A-Z][a-z]{2,}[a-z0-9]*(-[a-z0-9]+)?|Rp[ls]\w+|\d{7}[A-Z]\d\dRik")
_ENTREZ = re.compile(r"\d+")


def is_ensembl(gene: str) -> bool:
    """Whether an id has the form of an Ensembl (or fly, worm) gene id, with or without a version."""
    return _ENSEMBL.match(gene) is not None


def strip_version(gene: str) -> str:
    """Take the version off an Ensembl gene id: ``ENSG00000000003.14`` → ``ENSG00000000003``."""
    return _VERSION.sub("", gene) if is_ensembl(gene) else gene


def looks_like_rodent_symbols(ids: Iterable[str]) -> bool:
    """Whether most ids are written as mouse and rat symbols are: ``Gapdh``, ``Cd3e``, not ``GAPDH``."""
    symbols = [gene for gene in ids if not is_ensembl(gene)]
    capitalised = sum(_RODENT_SYMBOL.fullmatch(gene) is not None for gene in symbols)
    return bool(symbols) and capitalised > len(symbols) / 2


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
    kinds: Counter[str] = Counter()
    symbols = []
    for gene in genes:
        found = _ENSEMBL.match(gene)
        if found:
            prefix = found.group(1)
            kinds[f"{ENSEMBL_SPECIES.get(prefix, ENSEMBL_SPECIES.get(prefix.upper(), prefix))} Ensembl ids"] += 1
        elif _ENTREZ.fullmatch(gene):
            kinds["plain numbers (Entrez ids or a running index?)"] += 1
        else:
            symbols.append(gene)
    if symbols:
        rodent = looks_like_rodent_symbols(symbols)
        kinds["mouse or rat gene symbols" if rodent else "gene symbols or other names"] += len(symbols)
    return kinds.most_common(1)[0][0]
