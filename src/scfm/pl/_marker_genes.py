"""Highest genes of each group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scfm._checks import typed
from scfm._keys import MARKER_GENES
from scfm.get import marker_genes_df

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

__all__ = ["marker_genes"]


@typed
def marker_genes(
    adata: AnnData,
    groups: str | Sequence[str] | None = None,
    *,
    n_genes: int = 20,
    key: str = MARKER_GENES,
    **arguments: Any,
) -> Any:
    """Plot the highest genes of each group, as :func:`scanpy.pl.rank_genes_groups` does.

    Parameters
    ----------
    adata
        With the result of :func:`scfm.tl.marker_genes`.
    groups
        Groups to show; all by default.
    n_genes
        Genes of each group.
    key
        ``key_added`` of :func:`scfm.tl.marker_genes`.
    arguments
        As for :func:`scanpy.pl.rank_genes_groups`.

    Returns
    -------
    What scanpy returns: the axes with ``show=False``, else ``None``.

    Raises
    ------
    KeyError, ValueError
        As :func:`scfm.get.marker_genes_df`.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.tl.marker_genes(adata, "scfm-mini", groupby="bulk_labels", n_cells=5, genes=["NKG7", "CD79A", "LYZ"])
    >>> axes = scfm.pl.marker_genes(adata, ["CD56+ NK"], show=False)
    """
    import scanpy as sc

    groups = [groups] if isinstance(groups, str) else groups
    marker_genes_df(adata, groups, key=key, n_genes=n_genes)
    return sc.pl.rank_genes_groups(adata, groups, n_genes=n_genes, key=key, **arguments)
