"""Where perturbed cells lie among the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._checks import check_least, typed
from scfm._keys import CONTROL, PERTURB
from scfm.metrics.shifts import embeddings_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["perturb_cells"]


@typed
def perturb_cells(
    adata: AnnData,
    perturbation: str,
    *,
    basis: str = "umap",
    key: str = PERTURB,
    n_neighbors: int = 15,
    show: bool | None = None,
    save: str | bool | None = None,
    **arguments: Any,
) -> Axes | None:
    """Draw on a basis from each cell an arrow to where it lies after a perturbation.

    A cell lies at the mean of the places of its nearest unperturbed cells in the space of the model, weighted by
    ``1 / distance``: before, by its own embedding (without the cell itself), after, by that of the changed cell. Nothing is
    fitted again, so a cell that is like no other one is drawn among those that it is least unlike.

    Parameters
    ----------
    adata
        With the results of :func:`scfm.tl.perturb` under ``embeddings=True``.
    perturbation
        Gene or group of genes.
    basis
        Coordinates in ``obsm``, as for :func:`scanpy.pl.embedding`.
    key
        ``key_added`` of :func:`scfm.tl.perturb`.
    n_neighbors
        Neighbours of a cell.
    show, save
        As for scanpy's plots.
    arguments
        As for :func:`scanpy.pl.embedding`, such as ``color``.

    Returns
    -------
    The axes with ``show=False``, else ``None``.

    Raises
    ------
    KeyError
        If the embeddings, the perturbation or the basis are not there.
    ValueError
        If there are no more than ``n_neighbors`` cells.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()[:40].copy()
    >>> scfm.tl.perturb(adata, "scfm-mini", genes=["CD74"], embeddings=True)
    >>> axes = scfm.pl.perturb_cells(adata, "CD74", color="bulk_labels", show=False)
    """
    import scanpy as sc
    from scanpy.plotting._utils import savefig_or_show

    check_least("n_neighbors", n_neighbors)
    vectors, cells, names = embeddings_of(adata, key)
    known = [name for name in np.unique(names).tolist() if name != CONTROL]
    if perturbation not in known:
        msg = f"{perturbation!r} was not perturbed with embeddings; found {known}."
        raise KeyError(msg)
    places = next((adata.obsm[name] for name in (f"X_{basis}", basis) if name in adata.obsm), None)
    if places is None:
        msg = f"basis={basis!r} is not in obsm; found {list(adata.obsm)}."
        raise KeyError(msg)
    control, changed = names == CONTROL, names == perturbation
    if control.sum() <= n_neighbors:
        msg = f"n_neighbors={n_neighbors} takes more than as many perturbed cells; there are {int(control.sum())}."
        raise ValueError(msg)
    reference, at = vectors[control], np.asarray(places)[cells[control], :2]
    own = pd.Index(cells[control]).get_indexer(pd.Index(cells[changed]))
    before = _placed(reference[own], reference, at, n_neighbors, without=own)
    after = _placed(vectors[changed], reference, at, n_neighbors, without=own)
    ax = sc.pl.embedding(adata, basis, show=False, **arguments)
    move = after - before
    ax.quiver(*before.T, *move.T, angles="xy", scale_units="xy", scale=1, width=0.003, color="black")
    savefig_or_show("perturb_cells", show=show, save=save)
    return ax if show is False else None


def _placed(
    vectors: NDArray[Any], reference: NDArray[Any], places: NDArray[Any], k: int, without: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Weighted mean place of the nearest vectors of a reference, but for one each."""
    from sklearn.neighbors import NearestNeighbors

    distances, neighbors = NearestNeighbors(n_neighbors=k + 1).fit(reference).kneighbors(vectors)
    weights = 1 / np.maximum(distances, 1e-12)
    weights[neighbors == without[:, None]] = 0
    return np.einsum("ck,ckd->cd", weights / weights.sum(axis=1, keepdims=True), places[neighbors])
