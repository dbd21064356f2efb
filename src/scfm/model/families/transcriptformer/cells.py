"""What TranscriptFormer takes of cells beside their genes: their assay, and which of them are outliers."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scfm._settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scfm._types import CountBlock
    from scfm.read import CountSource

__all__ = ["ASSAY", "UNKNOWN", "Assays", "read_assays", "without_outliers"]

ASSAY, UNKNOWN = "assay", "unknown"


class Assays(NamedTuple):
    """The assays of the cells of a source."""

    tokens: NDArray[np.int32]
    """Token of each cell, −1 where the assay is not known, shape ``(n_obs,)``."""
    unknown: Mapping[str, int]
    """Number of cells of each label that the model does not know."""


def read_assays(source: CountSource, column: str, known: Mapping[str, int], first: int, *, exact: bool) -> Assays:
    """Find the assays of cells among those of a model.

    Parameters
    ----------
    source
        The cells.
    column
        Column of ``obs`` that holds the assays.
    known
        Ids of the assays of the model.
    first
        Token of the assay with id 0.
    exact
        Take labels as they stand, as upstream does. Otherwise case, blanks and signs do not matter, and EFO ids and the
        other names of ``assays.tsv`` are understood.

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
        return Assays(np.full(source.n_obs, -1, np.int32), {})
    labels, unknown = pd.Categorical(source.column(column)), known[UNKNOWN]
    spellings = {} if exact else _spellings(known)
    ids = [known.get(label, spellings.get(_plain(label), -1)) for label in labels.categories]
    counts = np.bincount(labels.codes + 1, minlength=len(ids) + 1)[1:].tolist()
    missed = {str(label): n for label, id_, n in zip(labels.categories, ids, counts, strict=True) if id_ < 0 and n}
    # a code of −1, for a label that is missing, finds the last entry
    tokens = [-1 if id_ in (-1, unknown) else id_ + first for id_ in [*ids, -1]]
    return Assays(np.array(tokens, np.int32)[labels.codes], missed)


def _spellings(known: Mapping[str, int]) -> dict[str, int]:
    """Ids of the assays of a model by everything that they are called, without case and signs."""
    found = {_plain(name): id_ for name, id_ in known.items()}
    with Path(__file__).with_name("assays.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["name"] in known:
                for name in (row["id"], *row["other"].split("|")):
                    found.setdefault(_plain(name), known[row["name"]])
    return found


def _plain(label: object) -> str:
    return re.sub(r"[^0-9a-z.]", "", str(label).casefold())


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
