"""Calibrate the novelty above which a cell is rejected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scfm.annotate._space import LabelSpace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm.annotate._reference import Reference

__all__ = ["left_out_novelty", "threshold"]


def left_out_novelty(reference: Reference, seed: int) -> NDArray[np.float32]:
    """Cross-validated novelty of the cells of the reference.

    Parameters
    ----------
    reference
        Labelled cells.
    seed
        As for :meth:`Reference.folds`.

    Returns
    -------
    float32, at most one value per cell, in no particular order.

    Raises
    ------
    ValueError
        If no cells can be held out.
    """
    return np.concatenate([LabelSpace.fit(known).novelty(left.values) for known, left in reference.folds(seed)])


def threshold(novelty: NDArray[np.floating], share: float) -> float:
    """Novelty above which ``share`` of the held-out cells are rejected.

    Parameters
    ----------
    novelty
        Novelty of held-out cells of known types.
    share
        Fraction of them to reject, between 0 and 1.

    Raises
    ------
    ValueError
        If there is no cell to calibrate with.
    """
    finite = novelty[np.isfinite(novelty)]
    if not len(finite):
        msg = "No label has cells left when a part of the reference is held out, so reject= cannot be calibrated."
        raise ValueError(msg)
    return float(np.quantile(finite, 1 - share))
