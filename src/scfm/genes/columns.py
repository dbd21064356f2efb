"""Match genes as the TranscriptFormer data loader does: by one column, nothing but the version taken off."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from scfm.genes.align import INDEX, GeneMap, ids_of, no_match_message, report_of
from scfm.genes.first import first_of_each

if TYPE_CHECKING:
    import pandas as pd

    from scfm.genes.vocabulary import Vocabulary

__all__ = ["UPSTREAM_COLUMN", "match_column"]

UPSTREAM_COLUMN = "ensembl_id"
logger = logging.getLogger(__name__)


def match_column(
    var: pd.DataFrame, vocabulary: Vocabulary, *, gene_key: str | None = None, keep_first: bool = False
) -> GeneMap:
    """Look up the ids of one column of ``var`` with everything from the first ``.`` on taken off.

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
    key = UPSTREAM_COLUMN if gene_key is None else gene_key
    if key != INDEX and key not in var:
        msg = (
            f"compat='upstream' takes gene ids from var[{key!r}], which is missing; found {list(var.columns)}. Name "
            "another column with gene_key=, 'index' for var_names, or leave compat=None, which looks for them."
        )
        raise KeyError(msg)
    ids = ids_of(var, key)
    plain = [gene.split(".", 1)[0] for gene in ids]
    tokens = np.asarray([vocabulary.token_of.get(gene, -1) for gene in plain], dtype=np.int32)
    repeated = len(plain) - len(set(plain))
    if repeated and not keep_first:
        seen: set[str] = set()
        twice = next(gene for gene in plain if gene in seen or seen.add(gene))  # type: ignore[func-returns-value]
        msg = (
            f"{repeated} gene ids of var[{key!r}] occur more than once without their versions, such as {twice!r}, which "
            "upstream refuses. Pass remove_duplicate_genes=True to keep the first of each, or leave compat=None, which "
            "adds up their counts."
        )
        raise ValueError(msg)
    tokens = first_of_each(tokens)
    routes = ["id" if gene == written else "version" for gene, written in zip(plain, ids, strict=True)]
    report = report_of(
        key, ids, tokens, [route if t >= 0 else "" for route, t in zip(routes, tokens, strict=True)], vocabulary
    )
    if report.matched == 0:
        raise ValueError(no_match_message([key], var, vocabulary))
    logger.info("%s", report)
    return GeneMap(tokens, report)
