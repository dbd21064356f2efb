"""What TranscriptFormer takes of cells beside their genes: their assay, and which of them are outliers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scfm._settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scfm._types import CountBlock
    from scfm.read import CountSource

__all__ = ["ASSAY", "UNKNOWN", "assay_tokens", "without_outliers"]

ASSAY, UNKNOWN = "assay", "unknown"


def assay_tokens(source: CountSource, column: str, assays: Mapping[str, int], first: int) -> NDArray[np.int32]:
    """Token of the assay of each cell, −1 where it is not known.

    Parameters
    ----------
    source
        The cells.
    column
        Column of ``obs`` that holds the assays.
    assays
        Ids of the assays of the model.
    first
        Token of the assay with id 0.

    Raises
    ------
    KeyError
        If there is no such column, and it is not the one that is read by default.
    """
    import pandas as pd

    if column not in source.obs_columns:
        if column != ASSAY:
            msg = f"aux_cols={column!r} is not a column of obs; found {source.obs_columns}."
            raise KeyError(msg)
        return np.full(source.n_obs, -1, np.int32)
    labels, unknown = pd.Categorical(source.column(column)), assays[UNKNOWN]
    # a code of −1, for a label that is missing, finds the last entry
    known = [assays.get(label, unknown) for label in labels.categories] + [unknown]
    tokens = [-1 if code == unknown else code + first for code in known]
    return np.array(tokens, np.int32)[labels.codes]


def without_outliers(source: CountSource, tokens: NDArray[np.int32], width: float) -> NDArray[np.bool_] | None:
    """Cells whose total over the genes of the model is within ``width`` standard deviations of the mean."""
    if not width or not source.n_obs:
        return None
    used = tokens >= 0
    totals = np.concatenate([_totals(block, used) for block in source.blocks(settings.block_rows)])
    kept: NDArray[np.bool_] = np.abs(totals - totals.mean()) < width * totals.std()
    return kept


def _totals(block: CountBlock, used: NDArray[np.bool_]) -> NDArray[np.float64]:
    values = np.where(used[block.indices], block.data, 0).astype(np.float64)
    return np.diff(np.concatenate([[0.0], np.cumsum(values)])[block.indptr])
