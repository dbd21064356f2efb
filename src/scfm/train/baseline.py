"""Logistic regression on principal components, beside which a trained classifier is reported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from scfm._checks import check_least, typed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["pca_baseline"]

TARGET_SUM = 10_000


@typed
def pca_baseline(
    counts: sparse.csr_matrix | sparse.csr_array,
    codes: ArrayLike,
    train: ArrayLike,
    test: ArrayLike,
    *,
    n_classes: int | None = None,
    n_genes: int = 2000,
    n_components: int = 50,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Predict the classes of test cells by logistic regression on principal components of the training cells.

    Counts are scaled to 10,000 in each cell, and log(1 + x) is taken. Highly variable genes
    (:func:`scanpy.pp.highly_variable_genes`), components (:class:`sklearn.decomposition.PCA`), the mean and standard deviation
    of each component, and the regression (L2 penalty with ``C=1``) are fitted to the training cells, so nothing of the test
    cells has an influence on what is predicted for others.

    The matrix stays sparse. While genes are chosen, memory holds two to three copies of the training cells.

    Parameters
    ----------
    counts
        Cells × genes. All genes count for the total of a cell.
    codes
        Class of each cell, ``(n_cells,)``: 0, 1, ...; those of the test cells are not used.
    train, test
        Rows of the cells; none may be in both.
    n_classes
        Number of classes; by default one more than the highest code of the training cells.
    n_genes
        Number of highly variable genes.
    n_components
        Number of components; one less than the training cells or genes if that is fewer.
    seed
        Seed of the start of the decomposition.

    Returns
    -------
    Probabilities, ``(n_test, n_classes)``; 0 for a class that no training cell has.

    Raises
    ------
    ValueError
        If there is not a class for each cell, counts are negative or not finite, rows are none of the matrix or in both
        parts, training cells have fewer than two classes, or ``n_classes`` is too low.

    Examples
    --------
    >>> import numpy as np, scfm
    >>> from scfm.train.baseline import pca_baseline
    >>> adata = scfm.datasets.pbmc68k()
    >>> codes, cells = adata.obs["bulk_labels"].cat.codes.to_numpy(), np.arange(adata.n_obs)
    >>> probabilities = pca_baseline(adata.X, codes, cells[::2], cells[1::2])
    >>> bool((probabilities.argmax(axis=1) == codes[1::2]).mean() > 0.7)
    True
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_least("n_genes", n_genes, 2)
    check_least("n_components", n_components)
    training, tested = _rows(train, "train", counts.shape[0]), _rows(test, "test", counts.shape[0])
    both = np.intersect1d(training, tested)
    if len(both):
        msg = f"{len(both):,} cells are in both train and test, the first is row {both[0]}; a test cell must not be trained on."
        raise ValueError(msg)
    known, n_classes = _classes(codes, training, counts.shape[0], n_classes)
    fitted = _normalised(counts, training)
    genes = _variable_genes(fitted, n_genes)
    n_components = min(n_components, len(training) - 1, len(genes) - 1)
    model = make_pipeline(
        PCA(n_components, svd_solver="arpack", random_state=seed), StandardScaler(), LogisticRegression(max_iter=1000)
    )
    model.fit(fitted[:, genes], known)
    del fitted
    probabilities = np.zeros((len(tested), n_classes))
    probabilities[:, model.classes_] = model.predict_proba(_normalised(counts, tested)[:, genes])
    return probabilities


def _rows(rows: ArrayLike, name: str, n_cells: int) -> NDArray[np.int64]:
    found = np.asarray(rows)
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu":
        msg = (
            f"{name} must be whole numbers, the rows of one or more cells; got {found.dtype} of shape {found.shape}. "
            "Of a mask take numpy.flatnonzero(mask)."
        )
        raise ValueError(msg)
    if not 0 <= found.min() <= found.max() < n_cells:
        msg = f"{name} holds rows {found.min()} to {found.max()}; counts has rows 0 to {n_cells - 1}."
        raise ValueError(msg)
    return found.astype(np.int64)


def _classes(
    codes: ArrayLike, training: NDArray[np.int64], n_cells: int, n_classes: int | None
) -> tuple[NDArray[np.int64], int]:
    """Classes of the training cells, and how many there are of all."""
    values = np.asarray(codes)
    if values.shape != (n_cells,) or values.dtype.kind not in "iu":
        msg = f"codes must be a whole number for each of {n_cells:,} cells; got {values.dtype} of shape {values.shape}."
        raise ValueError(msg)
    known = values[training].astype(np.int64)
    if known.min() < 0 or known.min() == known.max():
        msg = f"codes of training cells must be of two or more classes 0, 1, ...; got {known.min()} to {known.max()}."
        raise ValueError(msg)
    if n_classes is not None and n_classes <= known.max():
        msg = f"n_classes={n_classes} is too low for the code {known.max()} of a training cell."
        raise ValueError(msg)
    return known, int(known.max()) + 1 if n_classes is None else n_classes


def _normalised(counts: Any, rows: NDArray[np.int64]) -> sparse.csr_matrix:
    """log(1 + counts per 10,000) of some cells; those without counts are 0."""
    cells = sparse.csr_matrix(counts[rows], dtype=np.float32)
    if not (np.isfinite(cells.data).all() and cells.data.min(initial=0) >= 0):
        msg = "counts holds negative values, NaN or infinity; give raw counts."
        raise ValueError(msg)
    totals = np.asarray(cells.sum(axis=1, dtype=np.float64)).ravel()
    factors = np.divide(TARGET_SUM, totals, out=np.zeros_like(totals), where=totals > 0)
    cells.data *= np.repeat(factors, np.diff(cells.indptr)).astype(np.float32)
    np.log1p(cells.data, out=cells.data)
    return cells


def _variable_genes(cells: sparse.csr_matrix, n_genes: int) -> NDArray[np.int64]:
    """Columns of highly variable genes; all, if there are no more."""
    import scanpy as sc

    expressed = np.flatnonzero(np.bincount(cells.indices, minlength=cells.shape[1]))
    if len(expressed) <= n_genes:
        return expressed
    found = sc.pp.highly_variable_genes(AnnData(cells[:, expressed]), n_top_genes=n_genes, inplace=False)
    return expressed[found["highly_variable"].to_numpy()]
