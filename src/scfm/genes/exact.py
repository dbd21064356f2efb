"""Match genes as scCello's data preparation does: by the exact id, or by the exact symbol."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from scfm.genes.align import INDEX, GeneMap, ids_of, no_match_message, report_of, upstream_key

if TYPE_CHECKING:
    import pandas as pd

    from scfm.genes.vocabulary import Vocabulary

__all__ = ["match_exact"]

logger = logging.getLogger(__name__)

ID_COLUMN = "ensembl_ids"


def match_exact(var: pd.DataFrame, vocabulary: Vocabulary, *, gene_key: str | None = None) -> GeneMap:
    """Match genes by id or symbol as they are written.

    Ids come from ``var["ensembl_ids"]``, else from the index, which is taken for symbols unless its first entry starts
    with ENSG. Versions stay on, and columns that meet in one gene keep one token each.

    Raises
    ------
    KeyError, ValueError
        As :func:`scfm.genes.align`.
    """
    key = upstream_key(var, gene_key, ID_COLUMN)
    ids = ids_of(var, key)
    by_symbol = key == INDEX and bool(ids) and not ids[0].startswith("ENSG")
    genes = [vocabulary.symbols.get(name, "") for name in ids] if by_symbol else ids
    tokens = np.asarray([vocabulary.token_of.get(gene, -1) for gene in genes], dtype=np.int32)
    route = "symbol" if by_symbol else "id"
    report = report_of(key, ids, tokens, [route if token >= 0 else "" for token in tokens.tolist()], vocabulary)
    if report.matched == 0:
        raise ValueError(no_match_message([key], var, vocabulary))
    logger.info("%s", report)
    return GeneMap(tokens, report, sums=False)
