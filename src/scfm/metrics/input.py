"""What goes into the metrics, checked before anything is computed."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._package import pip_install

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import ArrayLike, NDArray

__all__ = ["codes_of", "import_scib", "points_of"]


def import_scib() -> ModuleType:
    """Import scib-metrics, which brings jax along.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # umap says on import that it could do more with TensorFlow
            import scib_metrics
    except ImportError as error:
        msg = f"The metrics need scib-metrics ({error}): {pip_install('metrics')}."
        raise ImportError(msg) from error
    return scib_metrics


def points_of(embedding: ArrayLike, name: str = "embedding") -> NDArray[np.float32]:
    """An embedding as finite float32 values, ``(n_cells, n_features)``.

    Raises
    ------
    ValueError
        If it is not a matrix of numbers, or a value is missing.
    """
    points = np.asarray(embedding)
    if points.ndim != 2 or points.dtype.kind not in "fiub":
        msg = (
            f"{name} must be a dense matrix of numbers (cells x features); got {points.dtype} of shape {points.shape}."
        )
        raise ValueError(msg)
    points = points.astype(np.float32, copy=False)
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        msg = (
            f"{name} has {bad.sum():,} of {len(points):,} rows with NaN or infinity, the first is row {bad.argmax()} "
            "(cells without a gene of the model have NaN). Leave these cells out, from all embeddings that you compare."
        )
        raise ValueError(msg)
    return points


def codes_of(values: ArrayLike, n_cells: int, name: str = "labels") -> NDArray[np.int64]:
    """Labels of the cells as codes 0, 1, ... of those that occur, in sorted order, ``(n_cells,)``.

    Raises
    ------
    ValueError
        If there is not one for each cell, one is missing, all are the same, or no two are.
    """
    labels: Any = values if isinstance(values, pd.Series | pd.Categorical) else np.asarray(values)
    if labels.ndim != 1 or len(labels) != n_cells:
        msg = f"{name} must be one for each of {n_cells:,} cells; got shape {labels.shape}."
        raise ValueError(msg)
    missing = np.asarray(pd.isna(labels))
    if missing.any():
        msg = (
            f"{name}: {missing.sum():,} of {n_cells:,} are missing. Leave these cells out, from all embeddings that you "
            "compare: adata[adata.obs[key].notna()]."
        )
        raise ValueError(msg)
    found, codes = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    if not 2 <= len(found) < n_cells:
        what = f"all are {str(found[0])!r}" if len(found) == 1 else "each occurs once"
        msg = f"{name}: of {n_cells:,} cells, {what}; needed are two different ones, and one that occurs twice."
        raise ValueError(msg)
    return codes.astype(np.int64)
