"""Evaluate gene scores against marker genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._checks import typed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray
    from scipy import sparse

__all__ = ["marker_auroc"]

BLOCK_VALUES = 4_000_000
"""Number of scores that are ranked at a time; about 60 bytes each."""


@typed
def marker_auroc(
    scores: sparse.csr_matrix | sparse.csr_array | ArrayLike,
    markers: Any,
    *,
    labels: ArrayLike | None = None,
    genes: Sequence[str] | None = None,
) -> NDArray[np.float64]:
    """Area under the ROC curve of gene scores for marker genes, for each cell.

    The probability that a random marker gene of the cell scores higher than a random other gene of it; ties count half.
    Undefined for a cell whose genes include no marker, or only markers. The benchmark of scCello reports the mean over
    all other cells (``numpy.nanmean``).

    Parameters
    ----------
    scores
        Score of each gene in each cell, ``(n_cells, n_genes)``. Scored genes are the stored entries of a sparse matrix,
        explicit zeros included, or the values of an array that are not NaN.
    markers
        Either a mask of the same shape, dense or sparse, or a mapping of labels to genes (as from :func:`read_markers`),
        which needs ``labels`` and ``genes``. A cell whose label is not in the mapping has no markers.
    labels
        Label of each cell.
    genes
        Name of each column of ``scores``.

    Returns
    -------
    One value per cell, ``(n_cells,)``; 0.5 is chance, NaN is undefined.

    Raises
    ------
    ValueError
        If shapes do not match, stored scores are NaN, or a mapping comes without ``labels`` and ``genes`` or shares no
        label or gene with them.

    Examples
    --------
    >>> import scfm
    >>> scores = [[3.0, 1.0, 2.0], [1.0, 1.0, 2.0]]
    >>> scfm.metrics.marker_auroc(scores, {"a": ["g1"]}, labels=["a", "b"], genes=["g1", "g2", "g3"])
    array([ 1., nan])
    """
    matrix = _csr_of(scores)
    look_up = _masks_of(markers, matrix.shape, labels, genes)
    out = np.full(matrix.shape[0], np.nan)
    for start, stop in _row_blocks(matrix.indptr):
        part = matrix[start:stop]
        rows = np.repeat(np.arange(stop - start), np.diff(part.indptr))
        out[start:stop] = _auroc(part.data, look_up(rows + start, part.indices), rows, stop - start)
    return out


def _csr_of(scores: Any) -> sparse.csr_matrix:
    from scipy import sparse

    if sparse.issparse(scores):
        matrix = sparse.csr_matrix(scores)
    else:
        dense = np.asarray(scores)
        if dense.ndim != 2 or dense.dtype.kind not in "fiub":
            msg = f"scores must be a matrix of numbers (cells x genes); got {dense.dtype} of shape {dense.shape}."
            raise ValueError(msg)
        dense = dense.astype(np.float64)
        cells, columns = np.nonzero(~np.isnan(dense))
        indptr = np.searchsorted(cells, np.arange(len(dense) + 1))
        matrix = sparse.csr_matrix((dense[cells, columns], columns, indptr), shape=dense.shape)
    if np.isnan(matrix.data).any():
        msg = f"{np.isnan(matrix.data).sum():,} scores are NaN; remove these entries from the matrix."
        raise ValueError(msg)
    return matrix


def _masks_of(markers: Any, shape: tuple[int, int], labels: ArrayLike | None, genes: Sequence[str] | None) -> Any:
    """Function of cells and columns that says which are markers."""
    from collections.abc import Mapping

    from scipy import sparse

    if isinstance(markers, Mapping):
        if labels is None or genes is None:
            msg = (
                "A mapping of labels to marker genes needs labels=, one per cell, and genes=, one per column of scores."
            )
            raise ValueError(msg)
        codes, table = _marker_table(markers, np.asarray(labels).astype(str), np.asarray(genes), shape)
        return lambda cells, columns: table[codes[cells], columns]
    mask = sparse.csr_matrix(markers, dtype=bool) if sparse.issparse(markers) else np.asarray(markers)
    if mask.shape != shape or mask.dtype != np.bool_:
        msg = f"markers must be a mask of booleans of shape {shape}; got {mask.dtype} of shape {mask.shape}."
        raise ValueError(msg)
    return lambda cells, columns: np.asarray(mask[cells, columns]).ravel()


def _marker_table(
    markers: Mapping[str, Iterable[str]], labels: NDArray[np.str_], genes: NDArray[Any], shape: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Code of each cell's label, and the mask of genes of each label."""
    if (labels.shape, genes.shape) != (shape[:1], shape[1:]):
        msg = f"scores has shape {shape}, but labels {labels.shape} and genes {genes.shape}."
        raise ValueError(msg)
    texts = [str(name) for name, members in markers.items() if isinstance(members, str)]
    if texts:
        msg = f"markers[{texts[0]!r}] is one string; give a list of genes."
        raise TypeError(msg)
    names, codes = np.unique(labels, return_inverse=True)
    if not set(names.tolist()) & {str(name) for name in markers}:
        msg = f"No cell has a label of markers; labels are {names[:3].tolist()}, markers are of {list(markers)[:3]}."
        raise ValueError(msg)
    if not set(genes.tolist()).intersection(*[{gene for members in markers.values() for gene in members}]):
        some = next((list(members)[:3] for members in markers.values() if members), [])
        msg = f"No gene of scores is a marker; genes are {genes[:3].tolist()}, markers are {some}. Ids or symbols in both?"
        raise ValueError(msg)
    table = np.stack([np.isin(genes, list(markers.get(str(name), ()))) for name in names])
    return codes, table


def _row_blocks(indptr: NDArray[np.integer[Any]]) -> list[tuple[int, int]]:
    """Consecutive rows of at most ``BLOCK_VALUES`` entries, or one row."""
    blocks, start = [], 0
    while start < len(indptr) - 1:
        stop = int(np.searchsorted(indptr, int(indptr[start]) + BLOCK_VALUES, side="right")) - 1
        stop = max(stop, start + 1)
        blocks.append((start, stop))
        start = stop
    return blocks


def _auroc(
    values: NDArray[Any], is_marker: NDArray[np.bool_], rows: NDArray[np.int64], n_rows: int
) -> NDArray[np.float64]:
    """Mann-Whitney statistic of each row, from the mean ranks of ties."""
    order = np.lexsort((values, rows))
    values, is_marker, rows = values[order], is_marker[order], rows[order]
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (rows[1:] != rows[:-1]) | (values[1:] != values[:-1])
    first = np.flatnonzero(new)
    size = np.diff(first, append=len(rows))
    rank = np.repeat(first + (size + 1) / 2, size)  # within the block: earlier rows have lower ranks
    n = np.bincount(rows, minlength=n_rows)
    before = np.cumsum(n) - n
    n_markers = np.bincount(rows, is_marker, minlength=n_rows)
    above = np.bincount(rows, is_marker * (rank - before[rows]), minlength=n_rows) - n_markers * (n_markers + 1) / 2
    pairs = n_markers * (n - n_markers)
    return np.divide(above, pairs, out=np.full(n_rows, np.nan), where=pairs > 0)
