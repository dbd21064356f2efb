"""Match genes as the published code of each model does, its rules as they are."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from scfm.genes.align import Match, no_match, report_of
from scfm.genes.features import INDEX, Features, ids_of
from scfm.genes.first import first_of_each
from scfm.genes.report import GeneMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scfm.genes.vocabulary import Vocabulary

__all__ = ["match_column", "match_exact", "match_upstream"]

logger = logging.getLogger(__name__)


def match_upstream(var: pd.DataFrame, vocabulary: Vocabulary, *, gene_key: str | None = None) -> GeneMap:
    """Match genes as the Geneformer tokenizer does.

    Ids (``var["ensembl_id"]``, else the index) are upper-cased and looked up in the published mapping; versions stay
    on; symbols count only where the mapping has them. Columns that meet in one gene are added only if the number of
    distinct ids and of distinct mapped genes differ, so exact duplicates alone keep one token each.

    Raises
    ------
    KeyError, ValueError
        As :func:`align`.
    """
    key = _key(var, gene_key, "ensembl_id")
    ids = ids_of(var, key)
    genes = [vocabulary.mapping.get(name.upper(), "") for name in ids]
    as_written = {name for name in ids if name in vocabulary.mapping}
    sums = len(as_written) != len({vocabulary.mapping[name] for name in as_written})
    routes = ["id" if gene == name.upper() else "alias" for gene, name in zip(genes, ids, strict=True)]
    return _map(Match(key, ids, _tokens(genes, vocabulary), routes), vocabulary, sums=sums)


def match_exact(var: pd.DataFrame, vocabulary: Vocabulary, *, gene_key: str | None = None) -> GeneMap:
    """Match genes as scCello's data preparation does: by the exact id, or by the exact symbol.

    Ids come from ``var["ensembl_ids"]``, else from the index, which is taken for symbols unless its first entry starts
    with ENSG. Versions stay on, and columns that meet in one gene keep one token each.

    Raises
    ------
    KeyError, ValueError
        As :func:`align`.
    """
    key = _key(var, gene_key, "ensembl_ids")
    ids = ids_of(var, key)
    by_symbol = key == INDEX and bool(ids) and not ids[0].startswith("ENSG")
    genes = [vocabulary.symbols.get(name, "") for name in ids] if by_symbol else ids
    routes = ["symbol" if by_symbol else "id"] * len(ids)
    return _map(Match(key, ids, _tokens(genes, vocabulary), routes), vocabulary, sums=False)


def match_column(
    var: pd.DataFrame, vocabulary: Vocabulary, *, gene_key: str | None = None, keep_first: bool = False
) -> GeneMap:
    """Match genes as the TranscriptFormer data loader does: by one column, everything from the first ``.`` on taken off.

    Parameters
    ----------
    var
        Annotation of the genes.
    vocabulary
        The genes of the model.
    gene_key
        Column with the ids, ``"index"`` for the index; ``"ensembl_id"`` by default.
    keep_first
        Of several columns with one id keep the first, instead of raising.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If an id occurs twice, or no gene matches.
    """
    key = "ensembl_id" if gene_key is None else gene_key
    if key != INDEX and key not in var:
        msg = (
            f"compat='upstream' takes gene ids from var[{key!r}], which is missing; found {list(var.columns)}. Name "
            "another column with gene_key=, 'index' for var_names, or leave compat=None, which looks for them."
        )
        raise KeyError(msg)
    ids = ids_of(var, key)
    genes = [name.split(".", 1)[0] for name in ids]
    repeated = len(genes) - len(set(genes))
    if repeated and not keep_first:
        seen: set[str] = set()
        twice = next(gene for gene in genes if gene in seen or seen.add(gene))  # type: ignore[func-returns-value]
        msg = (
            f"{repeated} gene ids of var[{key!r}] occur more than once without their versions, such as {twice!r}, which "
            "upstream refuses. Pass remove_duplicate_genes=True to keep the first of each, or leave compat=None, which "
            "adds up their counts."
        )
        raise ValueError(msg)
    routes = ["id" if gene == name else "version" for gene, name in zip(genes, ids, strict=True)]
    tokens = first_of_each(_tokens(genes, vocabulary))
    return _map(Match(key, ids, tokens, routes), vocabulary)


def _key(var: pd.DataFrame, gene_key: str | None, usual: str) -> str:
    """Where gene ids are: in the usual column, else in the index, unless ``gene_key`` names another place."""
    key = gene_key or (usual if usual in var else INDEX)
    if key != INDEX and key not in var:
        msg = f"gene_key={key!r} is not a column of var; found {list(var.columns)}."
        raise KeyError(msg)
    return key


def _tokens(genes: Sequence[str], vocabulary: Vocabulary) -> NDArray[np.int32]:
    return np.asarray([vocabulary.token_of.get(gene, -1) for gene in genes], dtype=np.int32)


def _map(match: Match, vocabulary: Vocabulary, *, sums: bool = True) -> GeneMap:
    if not (match.tokens >= 0).any():
        raise no_match(Features({match.key: list(match.ids)}, {}, {}), vocabulary)
    report = report_of(match, vocabulary)
    logger.info("%s", report)
    return GeneMap(match.tokens, report, sums)
