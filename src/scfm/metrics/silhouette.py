"""Silhouette widths of labels and batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scfm._checks import typed
from scfm.metrics.input import codes_of, import_scib, points_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scfm._types import Compat

__all__ = ["silhouette_batch", "silhouette_label"]


@typed
def silhouette_label(embedding: ArrayLike, labels: ArrayLike) -> float:
    r"""Average silhouette width (ASW) of labels, :math:`(\bar s + 1) / 2`.

    :math:`s_i = (b_i - a_i) / \max(a_i, b_i)` with the mean Euclidean distance :math:`a_i` of a cell to the others of
    its label, and :math:`b_i` to those of the nearest other label; 0 for the only cell of a label. Upstream's definition
    is the same.

    Parameters
    ----------
    embedding
        Cells, ``(n_cells, n_features)``.
    labels
        Cell type of each cell.

    Returns
    -------
    A value in [0, 1], high is good.

    Raises
    ------
    ValueError
        If labels or values are missing, all labels are one, or each occurs once.
    ImportError
        If scib-metrics is not installed.

    Examples
    --------
    >>> import scfm
    >>> round(scfm.metrics.silhouette_label([[0.0], [0.1], [5.0], [5.1]], ["a", "a", "b", "b"]), 3)
    0.99
    """
    points = points_of(embedding)
    return float(import_scib().silhouette_label(points, codes_of(labels, len(points))))


@typed
def silhouette_batch(
    embedding: ArrayLike, *, batches: ArrayLike, labels: ArrayLike | None = None, compat: Compat | None = None
) -> float:
    r"""Average silhouette width of batches: 1 if batches are perfectly mixed.

    By default the mean of :math:`1 - |s_i|` over the cells of a label, with the silhouettes of the batches among these
    cells only, and then over labels (scIB, Luecken et al. 2022, doi:10.1038/s41592-021-01336-8). Labels in a single
    batch, or with one cell per batch, are ignored.

    Parameters
    ----------
    embedding
        Cells, ``(n_cells, n_features)``.
    batches
        Batch of each cell.
    labels
        Cell type of each cell. Required unless ``compat`` is given, which ignores it.
    compat
        ``"upstream"``: as scCello, the mean of :math:`1 - |s_i|` over the cells of a batch, with the silhouettes of
        the batches among *all* cells, then over batches, then :math:`(\cdot + 1) / 2`. It is never below 0.5, and also
        rewards an embedding that mixes cell types.

    Returns
    -------
    A value in [0, 1], high is good.

    Raises
    ------
    ValueError
        If labels or values are missing, or there is one batch only, or no label lies in several batches.
    ImportError
        If scib-metrics is not installed.

    Examples
    --------
    >>> import scfm
    >>> points, batches = [[0.0], [1.0], [2.0], [3.0]], [1, 2, 1, 2]
    >>> round(scfm.metrics.silhouette_batch(points, batches=batches, labels=["a", "a", "b", "b"], compat="upstream"), 3)
    0.875
    """
    points = points_of(embedding)
    batch = codes_of(batches, len(points), "batches")
    if compat is not None:
        return _upstream(points, batch)
    if labels is None:
        msg = "silhouette_batch needs labels=, the cell types within which batches should be mixed."
        raise ValueError(msg)
    label = codes_of(labels, len(points))
    pairs = np.unique(np.stack([label, batch]), axis=1)
    if not ((np.bincount(pairs[0]) > 1) & (np.bincount(pairs[0]) < np.bincount(label))).any():
        msg = "No label has several cells in several batches, so mixing of batches within labels cannot be measured."
        raise ValueError(msg)
    return float(import_scib().silhouette_batch(points, label, batch))


def _upstream(points: NDArray[np.float32], batch: NDArray[np.int64]) -> float:
    from sklearn.metrics import silhouette_samples

    away = 1 - np.abs(silhouette_samples(points, batch))
    return float((np.mean(np.bincount(batch, away) / np.bincount(batch)) + 1) / 2)
