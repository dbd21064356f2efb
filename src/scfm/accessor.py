"""``adata.scfm`` and ``mdata.scfm``: the tools as methods."""

from __future__ import annotations

from typing import Any

import anndata
import mudata
from anndata import AnnData
from mudata import MuData

__all__ = ["ScfmAnnData", "ScfmMuData"]


class _Accessor:
    _data: AnnData | MuData

    def embed(self, model: Any, **arguments: Any) -> AnnData | MuData | None:
        """Call :func:`scfm.tl.embed` on this object.

        Parameters
        ----------
        model, arguments
            As for :func:`scfm.tl.embed`.
        """
        from scfm.tl import embed

        return embed(self._data, model, **arguments)

    def annotate(self, reference: Any = None, **arguments: Any) -> AnnData | MuData | None:
        """Call :func:`scfm.tl.annotate` on this object.

        Parameters
        ----------
        reference, arguments
            As for :func:`scfm.tl.annotate`.
        """
        from scfm.tl import annotate

        return annotate(self._data, reference, **arguments)

    def marker_genes(self, model: Any, **arguments: Any) -> AnnData | MuData | None:
        """Call :func:`scfm.tl.marker_genes` on this object.

        Parameters
        ----------
        model, arguments
            As for :func:`scfm.tl.marker_genes`.
        """
        from scfm.tl import marker_genes

        return marker_genes(self._data, model, **arguments)

    def match_genes(self, model: Any, **arguments: Any) -> Any:
        """Call :func:`scfm.pp.match_genes` on this object.

        Parameters
        ----------
        model, arguments
            As for :func:`scfm.pp.match_genes`.
        """
        from scfm.pp import match_genes

        return match_genes(self._data, model, **arguments)

    def score(self, model: Any, **arguments: Any) -> AnnData | MuData | None:
        """Call :func:`scfm.tl.score` on this object.

        Parameters
        ----------
        model, arguments
            As for :func:`scfm.tl.score`.
        """
        from scfm.tl import score

        return score(self._data, model, **arguments)

    def gene_embeddings(self, model: Any, **arguments: Any) -> Any:
        """Call :func:`scfm.tl.gene_embeddings` on this object.

        Parameters
        ----------
        model, arguments
            As for :func:`scfm.tl.gene_embeddings`.
        """
        from scfm.tl import gene_embeddings

        return gene_embeddings(self._data, model, **arguments)


@anndata.register_anndata_namespace("scfm")
class ScfmAnnData(_Accessor):
    """scfm on an AnnData object, as ``adata.scfm.embed("scfm-mini")``."""

    def __init__(self, adata: AnnData) -> None:
        self._data = adata


@mudata.register_mudata_namespace("scfm")
class ScfmMuData(_Accessor):
    """scfm on a MuData object, as ``mdata.scfm.embed("scfm-mini", modality="rna")``."""

    def __init__(self, mdata: MuData) -> None:
        self._data = mdata
