"""Which features of a data set are genes, and of which species."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm._checks import entry_of
from scfm.genes.species import ensembl_species, species_in, split_genome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

__all__ = ["INDEX", "Features", "any_of", "candidates", "ids_of", "name_columns", "place"]

INDEX = "index"
ID_COLUMNS = ("ensembl_id", "ensembl_ids", "gene_ids", "gene_id", "feature_id", "ensembl", "ensembl_gene_id", "ensg")
SYMBOL_COLUMNS = ("feature_name", "gene_symbols", "gene_symbol", "gene_names", "gene_name", "symbol", "hgnc_symbol")
KIND_COLUMNS = ("feature_types", "feature_type", "modality", "feature_biotype")
"""Columns of Cell Ranger, muon and CELLxGENE that distinguish genes from other features."""
GENES = frozenset({"gene expression", "gene", "genes", "pseudogene", "expression", "rna", "mrna", "gex"})
OTHERS = frozenset(
    {
        *("antibody capture", "antibody", "antigen capture", "protein", "proteins", "prot", "adt", "hto"),
        *("peaks", "peak", "atac", "chromatin accessibility", "multiplexing capture", "cmo", "hashtag", "custom"),
        *("crispr guide capture", "crispr", "guide", "grna", "sgrna", "spike-in"),
    }
)
"""Values of these columns that are not genes, whatever the other values are."""
GENOME_COLUMNS = ("genome", "feature_reference", "species", "organism")
_SPIKE_IN = re.compile(r"ERCC[-_]\d{5}")


@dataclass(frozen=True)
class Features:
    """What the annotation of features says about them."""

    names: dict[str, list[str]]
    """Names without genome prefixes, by ``"index"`` or the column of ``var`` that holds them."""
    not_genes: dict[str, NDArray[np.bool_]]
    """Features that are not genes, by the reason."""
    species: dict[tuple[str, str], NDArray[np.bool_]]
    """Features from a species, by the column that says so and the species."""

    @classmethod
    def of(cls, var: pd.DataFrame, gene_key: str | None = None) -> Features:
        """Read ``var``; with a ``gene_key``, only that column, and the genome of genes without a species there."""
        names: dict[str, list[str]] = {}
        species: dict[tuple[str, str], NDArray[np.bool_]] = {}
        for key in candidates(var) if gene_key is None else [gene_key]:
            genomes, names[key] = _split(ids_of(var, key))
            told = [genome or ensembl_species(name) for genome, name in zip(genomes, names[key], strict=True)]
            species |= _by_value(key, told)
        said = any_of(species.values(), len(var))
        for key in _columns(var, GENOME_COLUMNS):
            told = [species_in(text) for text in ids_of(var, key)]
            found = _by_value(key, told)
            species |= found if gene_key is None else {place: mask & ~said for place, mask in found.items()}
        return cls(names, _not_genes(var, names), species)

    @property
    def n_vars(self) -> int:
        """Number of features."""
        return len(next(iter(self.names.values())))


def any_of(masks: Iterable[NDArray[np.bool_]], n_vars: int) -> NDArray[np.bool_]:
    """Features in any of the masks; without masks, none."""
    found: NDArray[np.bool_] = np.logical_or.reduce([np.zeros(n_vars, bool), *masks])
    return found


def place(key: str) -> str:
    """The index or a column of ``var``, as users write it."""
    return "var_names" if key == INDEX else f"var[{key!r}]"


def candidates(var: pd.DataFrame) -> list[str]:
    """The index and columns that usually hold ids or symbols, in order of preference."""
    return [*_columns(var, ID_COLUMNS), INDEX, *_columns(var, SYMBOL_COLUMNS)]


def name_columns(var: pd.DataFrame) -> list[str]:
    """Columns of ``var`` that usually hold ids or symbols."""
    return _columns(var, ID_COLUMNS + SYMBOL_COLUMNS)


def ids_of(var: pd.DataFrame, key: str) -> list[str]:
    """Ids in a column of ``var`` or its index, empty where there is none.

    Raises
    ------
    ValueError
        If several columns have this name and differ.
    """
    values = var.index if key == INDEX else entry_of(var, key, "var")
    names = values.to_numpy(dtype=object)
    return np.where(pd.isna(names), "", names).astype(str).tolist()


def _columns(var: pd.DataFrame, usual: Sequence[str]) -> list[str]:
    present = {str(column).lower(): str(column) for column in var.columns}
    return [present[name] for name in usual if name in present]


def _split(names: list[str]) -> tuple[list[str], list[str]]:
    """Species of the genome prefixes of names, and the names without them."""
    pairs = [split_genome(name) for name in names]
    return [genome for genome, _ in pairs], [name for _, name in pairs]


def _by_value(key: str, values: list[str]) -> dict[tuple[str, str], NDArray[np.bool_]]:
    return {(key, value): np.array([one == value for one in values]) for value in sorted(set(values) - {""})}


def _not_genes(var: pd.DataFrame, names: dict[str, list[str]]) -> dict[str, NDArray[np.bool_]]:
    found = {}
    for key in _columns(var, KIND_COLUMNS):
        kinds = ids_of(var, key)
        has_genes = any(kind.lower() in GENES for kind in kinds)
        for (_, kind), mask in _by_value(key, kinds).items():
            if kind.lower() in OTHERS or (has_genes and kind.lower() not in GENES):
                found[f"{place(key)} is {kind!r}"] = mask
    spikes = any_of(
        (np.array([_SPIKE_IN.fullmatch(name) is not None for name in one], bool) for one in names.values()), len(var)
    )
    return found | ({"the name is that of an ERCC spike-in": spikes} if spikes.any() else {})
