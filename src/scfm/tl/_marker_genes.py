"""Genes that matter for the embedding of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._keys import MARKER_GENES, PARAMS, check_key
from scfm._text import some
from scfm._warn import warn
from scfm._write import Results
from scfm.batch import ranges_of
from scfm.metrics.ranking import cells_of_groups, ranked_table
from scfm.model import FoundationModel, load
from scfm.model.arguments import Arguments
from scfm.model.registry import check_offers, find_card
from scfm.run.device import default_batch_tokens
from scfm.tasks import MaskedGenes
from scfm.tl._target import target_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    import torch
    from anndata import AnnData
    from mudata import MuData
    from scipy import sparse

    from scfm._types import Compat
    from scfm.model.arguments import SharedWith
    from scfm.model.session import CountSession
    from scfm.run.device import Device
    from scfm.weights import ModelCard

__all__ = ["marker_genes"]

FEWEST_CELLS = 5
"""With fewer cells, the ranking of a group is mostly chance."""


@typed
@with_parameters
def marker_genes(
    data: AnnData | MuData | str | Path,
    model: str | Path | FoundationModel,
    *,
    groupby: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    genes: str | Sequence[str] | None = None,
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
        Id, alias, folder, or a loaded model, of a family that was trained with masked genes, as Geneformer; others are a
        TypeError.
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
        With ``groupby``, ranked genes in the layout of :func:`scanpy.tl.rank_genes_groups`, which scanpy's functions
        for its results read with ``key="marker_genes"``: record arrays with a field for each group and all genes,
        highest score first, those without any score (``params["n_genes_scored"]`` have one) last. ``names``;
        ``scores``, the mean score in the group minus that in the other cells, where genes without a score count as 0;
        ``logfoldchanges``, log2 of the ratio of these two means, each plus 1e-9; ``pvals`` and ``pvals_adj``, which are
        NaN, since scores are not tested; ``means``, the mean score in the group; ``pct_nz_group``, the share of its
        cells in which the gene has a score. ``params`` holds everything needed to repeat the run.

    Raises
    ------
    %(errors)s
    FileExistsError
        If ``out`` exists and ``overwrite`` is not set.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.tl.marker_genes(adata, "scfm-mini", groupby="bulk_labels", n_cells=5, genes=["NKG7", "CD79A"])
    >>> scfm.get.marker_genes_df(adata, "CD56+ NK").columns.tolist()
    ['names', 'scores', 'logfoldchanges', 'means', 'pct_nz_group']
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
        _check_masks(card)
    loaded = load(model)
    _check_masks(loaded.card)
    if not loaded.has_mask:
        msg = f"The vocabulary of {loaded.card.id} has no <mask>: marker genes need a model whose vocabulary has it."
        raise TypeError(msg)
    with loaded.count_session(target.data, arguments) as session:
        if session.options.pooling == "gene":
            msg = "pooling='gene' gives no embedding of cells; leave pooling out, or use 'cls' or 'mean'."
            raise ValueError(msg)
        names, n_obs = session.source.var.index, session.source.n_obs
        tokens = _masked_tokens(session, genes)
        labels = None if groupby is None else session.groups(groupby)
        cells = cells_of_groups(labels, n_obs, n_cells, seed)
        if labels is not None:
            _warn_of_small_groups(labels[cells])
        task = MaskedGenes(session.model, session.options, tokens, default_batch_tokens(session.device))
        params = session.params(session.run(task, ranges_of(cells)))
        columns = session.columns_for(target.var_names)
    scores = task.scores(n_obs)
    params |= {"method": "masking", "reference": "rest", "use_raw": False, "n_cells_scored": len(cells), "seed": seed}
    result: dict[str, Any] = {PARAMS: params}
    if labels is not None:
        params |= {"groupby": groupby, "n_genes_scored": len(np.unique(scores.indices))}
        result |= ranked_table(scores[cells], labels[cells], names)
    layer = _picked(scores, columns)
    return target.store(Results(layers={key_added: layer}, uns={key_added: result}))


def _check_masks(card: ModelCard) -> None:
    words = "was not trained with masked genes; marker genes take a model of one of these families"
    check_offers(card, "masked_outputs", words)


def _masked_tokens(session: CountSession, genes: Sequence[str] | None) -> np.ndarray:
    """Token of each column whose gene is to be masked, −1 for the others."""
    columns = session.columns_of(genes)
    if not len(columns):
        msg = "genes is empty, so there is nothing to mask; leave it out to mask all genes."
        raise ValueError(msg)
    tokens = np.full_like(session.genes.tokens, -1)
    tokens[columns] = session.genes.tokens[columns]
    return tokens


def _warn_of_small_groups(labels: pd.Categorical) -> None:
    sizes = labels.value_counts()
    small = [f"{group!r} ({n})" for group, n in sizes.items() if 0 < n < FEWEST_CELLS]
    if small:
        warn(
            f"{len(small)} groups have fewer than {FEWEST_CELLS} cells to rank genes from: {some(small)}. Their first "
            "genes are largely chance; draw more cells (n_cells=), or join or leave out these groups."
        )


def _picked(scores: sparse.csr_matrix, columns: np.ndarray) -> sparse.csr_matrix:
    """Scores in other columns; nothing for −1."""
    if np.array_equal(columns, np.arange(scores.shape[1])):
        return scores
    from scipy import sparse

    found = np.flatnonzero(columns >= 0)
    picked = scores[:, columns[found]].tocoo()
    shape = (scores.shape[0], len(columns))
    return sparse.csr_matrix((picked.data, (picked.row, found[picked.col])), shape=shape)
