"""How unlike the reference a cell must be to get no label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scfm.annotate._space import LabelSpace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm.annotate._reference import Reference

__all__ = ["left_out_novelty", "threshold"]


def left_out_novelty(reference: Reference, seed: int) -> NDArray[np.float32]:
    """Novelty of the cells of the reference, each judged by a space that has not seen it.

    Parameters
    ----------
    reference
        Labelled cells.
    seed
        As for :meth:`Reference.folds`.

    Returns
    -------
    float32, at most one value a cell, in no order.

    Raises
    ------
    ValueError
        If nothing can be left out.
    """
    return np.concatenate([LabelSpace.fit(known).novelty(left.values) for known, left in reference.folds(seed)])


def threshold(novelty: NDArray[np.floating], share: float) -> float:
    """Novelty above which a cell is rejected, so that ``share`` of known cells would be.

    Parameters
    ----------
    novelty
        Of cells whose type is known, left out one way or another.
    share
        Share of them that may be rejected, between 0 and 1.

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
