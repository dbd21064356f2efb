"""Batches of training from lists of sequences, for tests of losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._types import TokenBatch
from scfm.train.objective import IGNORED, TrainingBatch

if TYPE_CHECKING:
    from collections.abc import Sequence


def training_batch(
    cells: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]] | None = None,
    *,
    rows: Sequence[int] | None = None,
    views: Sequence[int] | None = None,
    values: Sequence[Sequence[float]] | None = None,
    **more: Any,
) -> TrainingBatch:
    """Pack sequences in the order given."""
    tokens = np.concatenate(cells).astype(np.int64)
    batch = TokenBatch(
        np.arange(len(cells)) if rows is None else np.array(rows),
        tokens,
        np.array([len(cell) for cell in cells]),
        None if values is None else np.concatenate(values).astype(np.float32),
        np.zeros(len(cells), np.int64) if views is None else np.array(views),
    )
    wanted = np.full(len(tokens), IGNORED) if targets is None else np.concatenate(targets).astype(np.int64)
    return TrainingBatch(batch, wanted, **more)
