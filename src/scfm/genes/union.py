"""All genes of several data sets, by Ensembl id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scfm.genes.features import Features, any_of
from scfm.genes.species import ensembl_species, is_ensembl, strip_version
from scfm.genes.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pandas as pd

__all__ = ["union_of"]


def union_of(
    tables: Iterable[pd.DataFrame],
    *,
    names: Vocabulary | None = None,
    gene_key: str | None = None,
    species: str = "human",
) -> Vocabulary:
    """A vocabulary of all genes of some data sets, in which :func:`align` finds them again.

    Parameters
    ----------
    tables
        ``var`` of the data sets.
    names
        Vocabulary whose genes are added, and whose symbols and other ids are understood; they take precedence over
        those of the data sets.
    gene_key
        Column of the tables that holds the ids, ``"index"`` for the index. By default all usual places are looked at.
    species
        Species of the genes; those of others are left out.

    Returns
    -------
    Genes in the order of their ids, tokens from 0 on, without special tokens. A symbol that a data set lists beside an
    id is kept, so that it is understood in data sets that hold symbols alone.

    Raises
    ------
    ValueError
        If no data set has an Ensembl id of the species, and there are no ``names``.

    Examples
    --------
    >>> import pandas as pd
    >>> one = pd.DataFrame({"gene_ids": ["ENSG00000141510.17"]}, index=["TP53"])
    >>> other = pd.DataFrame(index=["ENSG00000012048", "ENSMUSG00000059552"])
    >>> found = union_of([one, other])
    >>> found.genes.tolist(), dict(found.symbols)
    (['ENSG00000012048', 'ENSG00000141510'], {'TP53': 'ENSG00000141510'})
    """
    mapping = {} if names is None else dict(names.mapping)
    symbols = {} if names is None else dict(names.symbols)
    genes = set[str]() if names is None else set(names.genes.tolist())
    taken = {symbol.upper() for symbol in symbols}
    for var in tables:
        own: dict[str, str] = {}
        for gene, symbol in _pairs(Features.of(var, gene_key), species):
            gene = mapping.get(gene, gene)  # retired ids
            genes.add(gene)
            if symbol and symbol.upper() not in taken:
                own[symbol] = "" if own.get(symbol, gene) != gene else gene  # of two genes with one symbol, neither
        symbols |= {symbol: gene for symbol, gene in own.items() if gene}
        taken |= {symbol.upper() for symbol in own}
    if not genes:
        msg = (
            f"No file has Ensembl ids of {species} genes, by which genes of different files are told. Name a model whose "
            "gene symbols are those of the files (names=), as 'scfm-mini', or the column of var that holds ids (gene_key=)."
        )
        raise ValueError(msg)
    plain = Vocabulary.of_names(sorted(genes), (), species=species)
    return Vocabulary(plain.genes, plain.tokens, None, {}, mapping, symbols, species)


def _pairs(features: Features, species: str) -> Iterator[tuple[str, str]]:
    """Id and symbol of each gene that has an id; symbols of columns come before names in the index."""
    not_genes = any_of(features.not_genes.values(), features.n_vars).tolist()
    for left_out, *names in zip(not_genes, *features.names.values(), strict=True):
        gene = next((strip_version(name) for name in names if ensembl_species(name) == species), "")
        if gene and not left_out:
            yield gene, next((name for name in reversed(names) if name and not is_ensembl(name)), "")
