"""Whether probabilities of classes mean what they say, and a temperature that makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scfm._checks import check_least, typed
from scfm._warn import warn
from scfm.metrics.predictions import matrix_of, probabilities_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["calibrated", "calibration_error", "fit_temperature"]


@typed
def calibration_error(probabilities: ArrayLike, codes: ArrayLike, *, n_bins: int = 15) -> float:
    """Expected calibration error: how far confidence and accuracy are apart :cite:p:`Guo2017`.

    The confidence of a cell is its highest probability. Cells are put into bins of equal width by it, the m-th of M from
    (m − 1) / M, exclusive, to m / M, inclusive. The error is the mean over all cells of the absolute difference between the
    accuracy and the mean confidence of their bin.

    Parameters
    ----------
    probabilities
        Of classes, ``(n_cells, n_classes)``; rows sum to 1.
    codes
        Column of each cell's class, ``(n_cells,)``.
    n_bins
        Number of bins.

    Returns
    -------
    Between 0 and 1; 0 is best.

    Raises
    ------
    ValueError
        If ``probabilities`` are none, ``codes`` are not one for each cell, ``n_bins`` is below 1, or there is no cell.

    Examples
    --------
    >>> import scfm
    >>> scfm.metrics.calibration_error([[0.75, 0.25], [0.75, 0.25]], [0, 1])
    0.25
    """
    check_least("n_bins", n_bins)
    matrix = matrix_of(probabilities, "probabilities")
    matrix = probabilities_of(matrix, *matrix.shape)
    true = _codes_of(codes, *matrix.shape)
    if not len(true):
        msg = "probabilities has no cell."
        raise ValueError(msg)
    confidence = matrix.max(axis=1)
    gap = (matrix.argmax(axis=1) == true) - confidence
    bins = np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    return float(np.abs(np.bincount(bins, gap)).sum() / len(true))


@typed
def fit_temperature(logits: ArrayLike, codes: ArrayLike) -> float:
    """Fit the temperature by which logits are divided, on cells that the model was not trained on :cite:p:`Guo2017`.

    It minimises the mean negative log-likelihood of the true classes, which is convex in 1 / temperature, so the minimum is
    where its derivative is 0 (:func:`scipy.optimize.brentq`). The order of the classes in a cell stays the same.

    Parameters
    ----------
    logits
        ``(n_cells, n_classes)``.
    codes
        Column of each cell's class, ``(n_cells,)``.

    Returns
    -------
    Finite and above 0; above 1 where the model is too sure. 1, with a warning, where no such temperature is the best one:
    there are no cells, every cell has the highest logit at its class, or logits say no more than chance.

    Raises
    ------
    ValueError
        If ``logits`` are no matrix of finite numbers, or ``codes`` are not one for each cell.

    Examples
    --------
    >>> import scfm
    >>> logits = [[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]]
    >>> temperature = scfm.metrics.fit_temperature(logits, [0, 0, 1, 1])
    >>> round(temperature, 3)
    3.641
    >>> scfm.metrics.calibrated(logits, temperature)[0].round(3)
    array([0.75, 0.25])
    """
    from scipy.optimize import brentq
    from scipy.special import softmax

    values = matrix_of(logits, "logits")
    true = _codes_of(codes, *values.shape)
    if not len(true):
        warn("logits has no cell to fit a temperature on; it stays 1.")
        return 1.0
    values = values - values.max(axis=1, keepdims=True)
    scale = max(float(np.abs(values).max()), np.finfo(float).tiny)
    values /= scale
    at_class = values[np.arange(len(true)), true].mean()

    def slope(inverse: float) -> float:
        return float((softmax(inverse * values, axis=1) * values).sum(axis=1).mean() - at_class)

    if not at_class < 0 or slope(0) > -1e-12:  # the likelihood rises up to infinity, or falls from 0
        why = "every cell has the highest logit at its class" if not at_class < 0 else "they say no more than chance"
        warn(f"No temperature above 0 is the best one for these logits: {why}; it stays 1. Fit it on more cells.")
        return 1.0
    upper = 1.0
    while slope(upper) <= 0:
        upper *= 2
    return scale / float(brentq(slope, 0.0, upper, xtol=1e-14))


@typed
def calibrated(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Probabilities of classes: the softmax of logits divided by a temperature.

    Parameters
    ----------
    logits
        ``(n_cells, n_classes)``.
    temperature
        From :func:`fit_temperature`; 1 for those that the model gives.

    Returns
    -------
    ``(n_cells, n_classes)``, float64; rows sum to 1.

    Raises
    ------
    ValueError
        If ``logits`` are no matrix of finite numbers, or ``temperature`` is not finite and above 0.

    Examples
    --------
    >>> import scfm
    >>> scfm.metrics.calibrated([[2.0, 0.0]], 2.0).round(3)
    array([[0.731, 0.269]])
    """
    from scipy.special import softmax

    if not 0 < temperature < np.inf:
        msg = f"temperature must be finite and above 0, got {temperature}."
        raise ValueError(msg)
    found: NDArray[np.float64] = softmax(matrix_of(logits, "logits") / temperature, axis=1)
    return found


def _codes_of(codes: ArrayLike, n_cells: int, n_classes: int) -> NDArray[np.int64]:
    values = np.asarray(codes)
    if values.shape != (n_cells,) or (n_cells and values.dtype.kind not in "iu"):
        msg = f"codes must be a whole number for each of {n_cells:,} cells; got {values.dtype} of shape {values.shape}."
        raise ValueError(msg)
    if n_cells and not 0 <= values.min() <= values.max() < n_classes:
        msg = (
            f"codes must be between 0 and {n_classes - 1}, the columns of the classes; got {values.min()} to {values.max()}. "
            "Leave cells without a label out."
        )
        raise ValueError(msg)
    return values.astype(np.int64)
