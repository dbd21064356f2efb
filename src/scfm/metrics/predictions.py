"""What a classifier says of cells, checked and turned into codes of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm._text import some

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["check_classes", "class_codes", "fold_codes", "matrix_of", "probabilities_of", "texts_of"]

ROUNDING = 1e-3
"""By how much the probabilities of a cell may miss a sum of 1; those in half precision do."""


def texts_of(values: ArrayLike, name: str, n_cells: int | None = None) -> NDArray[np.object_]:
    """A value for each cell as text, ``None`` where it is missing, ``(n_cells,)``.

    Raises
    ------
    ValueError
        If it has not one dimension, or there are not ``n_cells``.
    """
    column = np.asarray(values, dtype=object)
    if column.ndim != 1:
        msg = f"{name} must be a list or an array with one value for each cell; got {type(values).__name__} of shape {column.shape}."
        raise ValueError(msg)
    if n_cells is not None and len(column) != n_cells:
        msg = f"{name} has {len(column):,} values for {n_cells:,} labels; each cell needs both."
        raise ValueError(msg)
    texts = column.astype(str).astype(object)
    texts[pd.isna(column)] = None
    return texts


def check_classes(classes: Sequence[str]) -> None:
    """Raise a ValueError unless there are two classes or more, all different."""
    if len(set(classes)) != len(classes) or len(classes) < 2:
        msg = f"classes must be two or more different names; got {len(classes)}: {some(classes) or 'none'}."
        raise ValueError(msg)


def class_codes(texts: NDArray[np.object_], classes: Sequence[str], name: str) -> NDArray[np.int64]:
    """Position of each cell's class, −1 where it is missing.

    Raises
    ------
    ValueError
        If one is not among the classes.
    """
    codes = pd.Index(np.array(classes, dtype=object)).get_indexer(pd.Index(texts)).astype(np.int64)
    other = sorted({text for text, code in zip(texts, codes, strict=True) if code < 0 and text is not None})
    if other:
        msg = f"{name} holds {some(map(repr, other))}, not among classes={some(map(repr, classes))}; leave these cells out."
        raise ValueError(msg)
    return codes


def fold_codes(folds: ArrayLike | None, n_cells: int) -> NDArray[np.int64]:
    """Number of each cell's fold; 0 if there are none.

    Raises
    ------
    ValueError
        If they are not whole numbers, one for each cell.
    """
    if folds is None:
        return np.zeros(n_cells, np.int64)
    numbers = np.asarray(folds)
    if numbers.shape != (n_cells,) or numbers.dtype.kind not in "iu":
        msg = (
            f"folds must be a whole number for each of {n_cells:,} cells; got {numbers.dtype} of shape {numbers.shape}."
        )
        raise ValueError(msg)
    return numbers.astype(np.int64)


def matrix_of(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Finite numbers of cells × classes.

    Raises
    ------
    ValueError
        If they are none, of fewer than two classes, or not finite.
    """
    matrix = np.asarray(values)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or matrix.shape[1] < 2:
        msg = f"{name} must be a matrix of numbers, cells x two or more classes; got {matrix.dtype} of shape {matrix.shape}."
        raise ValueError(msg)
    bad = ~np.isfinite(matrix).all(axis=1)
    if bad.any():
        msg = f"{name} has {bad.sum():,} of {len(matrix):,} rows with NaN or infinity, the first is row {bad.argmax()}. Leave these cells out."
        raise ValueError(msg)
    return matrix.astype(np.float64)


def probabilities_of(values: ArrayLike, n_cells: int, n_classes: int) -> NDArray[np.float64]:
    """Probabilities of cells × classes, as they are: to scale rows would undo ties between cells.

    Raises
    ------
    ValueError
        If the shape is another, a value is negative or not finite, or a row does not sum to 1.
    """
    matrix = matrix_of(values, "probabilities")
    if matrix.shape != (n_cells, n_classes):
        msg = f"probabilities has shape {matrix.shape}; there are {n_cells:,} labels and {n_classes} classes."
        raise ValueError(msg)
    sums = matrix.sum(axis=1, keepdims=True)
    bad = (matrix < 0).any(axis=1) | (np.abs(sums[:, 0] - 1) > ROUNDING)
    if bad.any():
        msg = (
            f"probabilities has {bad.sum():,} of {n_cells:,} rows with negative values or a sum other than 1, the first is row "
            f"{bad.argmax()}. Of logits, take scfm.metrics.calibrated(logits, 1.0)."
        )
        raise ValueError(msg)
    return matrix
