"""Genes that matter for the embedding of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._docs import with_parameters
from scfm._keys import MARKER_GENES, check_key
from scfm._write import Results
from scfm.model import FoundationModel, load
from scfm.model.arguments import Arguments
from scfm.model.masking import check_family_masks, score_markers
from scfm.model.registry import find_card
from scfm.tl._target import target_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from anndata import AnnData
    from mudata import MuData
    from scipy import sparse

    from scfm._types import Compat
    from scfm.model.arguments import SharedWith
    from scfm.run.device import Device

__all__ = ["marker_genes"]


@with_parameters
def marker_genes(
    data: AnnData | MuData | str | Path,
    model: str | Path | FoundationModel,
    *,
    groupby: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    genes: Sequence[str] | None = None,
    n_cells: int | None = None,
    seed: int = 0,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    pooling: str | None = None,
    hidden_layer: int | None = None,
    max_tokens: int | None = None,
    device: Device | Sequence[Device] | None = None,
    dtype: str | torch.dtype | None = None,
    compat: Compat | None = None,
    shared_with: SharedWith = None,
    key_added: str = MARKER_GENES,
    copy: bool = False,
    **options: Any,
) -> AnnData | MuData | Path | None:
    """Score how much each gene matters for the embedding of each cell, by masking it.

    The score of gene ``g`` in a cell is ``1 − cos(z, z_g)``: ``z`` is the embedding of the cell, ``z_g`` that of the same
    cell with ``<mask>`` in the place of ``g`` (Yuan et al. 2024, arXiv:2408.12373). It takes one run of the network for
    every gene of every cell, so choose cells (``n_cells``) or genes (``genes``) where there are many.

    Parameters
    ----------
    %(data)s
    model
        Id, alias, folder, or a loaded model, of a family that was trained with masked genes, as Geneformer.
    groupby
        Column of ``obs``; genes are ranked for each of its values. Cells without a value are left out.
    %(out)s
    %(genes)s
    n_cells
        Most cells of each group (of all cells without ``groupby``), drawn at random; all by default.
    seed
        Seed of the draw.
    %(matrix)s
    pooling
        As for :func:`scfm.tl.embed`, except ``"gene"``. scCello was evaluated with ``"cls"``, its default.
    %(hidden_layer)s
    %(max_tokens)s
    %(device)s
    %(dtype)s
    %(compat)s
    %(shared_with)s
    key_added
        Name of all results.
    %(copy)s
    %(options)s

    Returns
    -------
    ``None``, the changed copy with ``copy=True``, or the path ``out``. Sets these fields:

    ``.layers['marker_genes' | key_added]`` : sparse float32, shape ``(n_obs, n_vars)``
        Scores, 0 to 2. What is stored was computed; genes that a cell does not express, or that did not fit into its
        input, have no score. Genes that share a token share the score.
    ``.uns['marker_genes' | key_added]`` : dict
        With ``groupby``, ranked genes as :func:`scanpy.tl.rank_genes_groups` stores them (but without fold changes and
        p-values, which some of scanpy's plots ask for), a record array with a field for each group: ``names``, ``scores`` (mean score of the group minus that of the other cells; genes without a score
        count as 0), ``means`` (mean score of the group) and ``pts`` (share of its cells in which the gene has a score).
        ``params`` holds everything needed to repeat the run. :func:`scfm.get.marker_genes_df` and
        :func:`scfm.pl.marker_genes` read it.

    Raises
    ------
    TypeError
        If the model was not trained with masked genes, or as :func:`scfm.tl.embed`.
    KeyError
        If ``groupby`` is not in ``obs``, or a gene is not found.
    ValueError
        If ``groupby`` holds no value, ``n_cells`` is below 1, or as :func:`scfm.tl.embed`; nothing is stored then.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.tl.marker_genes(adata, "scfm-mini", groupby="bulk_labels", n_cells=2, genes=["NKG7", "CD79A"])
    >>> scfm.get.marker_genes_df(adata, "CD56+ NK").columns.tolist()
    ['names', 'scores', 'means', 'pts']
    """
    arguments = Arguments(
        modality=modality,
        layer=layer,
        use_raw=use_raw,
        gene_key=gene_key,
        pooling=pooling,
        hidden_layer=hidden_layer,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
        compat=compat,
        shared_with=shared_with,
        options=options,
    )
    check_key(key_added)
    target = target_of(data, "marker_genes", modality=modality, out=out, overwrite=overwrite, copy=copy)
    target.check_free(key_added, ("layers", key_added))
    card = None if isinstance(model, FoundationModel) else find_card(str(model))
    if card is not None:
        check_family_masks(card)
    scores, columns_for, result = score_markers(
        load(model), target.data, arguments, groupby=groupby, genes=genes, n_cells=n_cells, seed=seed
    )
    layer = _picked(scores, columns_for(target.var_names))
    return target.store(Results(layers={key_added: layer}, uns={key_added: result}))


def _picked(scores: sparse.csr_matrix, columns: np.ndarray) -> sparse.csr_matrix:
    """Scores in other columns; nothing for −1."""
    if np.array_equal(columns, np.arange(scores.shape[1])):
        return scores
    from scipy import sparse

    found = np.flatnonzero(columns >= 0)
    picked = scores[:, columns[found]].tocoo()
    shape = (scores.shape[0], len(columns))
    return sparse.csr_matrix((picked.data, (picked.row, found[picked.col])), shape=shape)
