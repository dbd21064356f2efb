"""Real blood cells that come with scanpy."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from scfm._checks import typed

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["pbmc68k"]

_TARGET_SUM = 10_000
_LARGEST_DEVIATION = 0.25


@typed
def pbmc68k() -> AnnData:
    """700 peripheral blood mononuclear cells with integer counts of 765 genes.

    The cells are those of :func:`scanpy.datasets.pbmc68k_reduced`, a sample of the 68,000 cells of Zheng et al. (2017,
    doi:10.1038/ncomms14049). scanpy ships them log-normalised; the counts are restored as
    ``expm1(raw) · n_counts / 10,000`` and rounded.

    Returns
    -------
    X: counts, float32 CSR, ``(700, 765)``. ``obs``: labels of the cells, ``bulk_labels`` among them, ``n_counts``
    (total over all genes of the original data) and quality measures. ``obsm["X_umap"]``: scanpy's UMAP.

    Raises
    ------
    RuntimeError
        If the installed scanpy ships other data, so that no integers come out.

    Examples
    --------
    >>> import scfm
    >>> scfm.datasets.pbmc68k().shape
    (700, 765)
    """
    import anndata as ad
    import scanpy as sc
    from scipy import sparse

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the age of scanpy's file
        reduced = sc.datasets.pbmc68k_reduced()
    normalised = sparse.csr_matrix(reduced.raw.X, dtype=np.float64)
    totals = reduced.obs["n_counts"].to_numpy(np.float64)
    counts = sparse.diags(totals / _TARGET_SUM) @ normalised.expm1()
    rounded = np.rint(counts.data)
    if np.abs(counts.data - rounded).max() >= _LARGEST_DEVIATION:
        msg = "The cells that this version of scanpy ships do not give integer counts; please report this with its version."
        raise RuntimeError(msg)
    counts.data = rounded
    counts.eliminate_zeros()
    return ad.AnnData(
        sparse.csr_matrix(counts, dtype=np.float32),
        obs=reduced.obs.copy(),
        var=reduced.raw.var[[]].copy(),
        obsm={"X_umap": reduced.obsm["X_umap"]},
        uns={"bulk_labels_colors": reduced.uns["bulk_labels_colors"]},
    )
