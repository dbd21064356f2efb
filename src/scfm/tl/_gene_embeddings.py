"""The embedding of every gene in every cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm._paths import atomic, check_new
from scfm.genes import first_index
from scfm.model import FoundationModel, load
from scfm.run.gene_sink import GeneStatesSink, SparseStates, ZarrStates
from scfm.tl._target import check_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sparse
    import torch
    from anndata import AnnData
    from mudata import MuData

    from scfm.model._base import Compat
    from scfm.model._session import Session

__all__ = ["columns_of", "gene_embeddings"]

BLOCK_BYTES = 2**28


def gene_embeddings(
    data: AnnData | MuData | str | Path,
    model: str | Path | FoundationModel,
    *,
    genes: Sequence[str] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    hidden_layer: int | None = None,
    max_tokens: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    compat: Compat | None = None,
    **options: Any,
) -> sparse.GCXS | Path:
    """Compute contextual gene embeddings: the hidden state of each expressed gene in each cell.

    The state is taken after the network has read the gene and its count. Means over cells are one call less:
    ``scfm.tl.embed(adata, model, pooling="gene", groupby=...)``.

    Parameters
    ----------
    data
        As for :func:`scfm.tl.embed`, or the path of a file; for some cells pass ``adata[cells]``.
    model
        Id, alias, folder, or a loaded model, of any family.
    genes
        Names of genes, as in ``var_names``; all by default.
    out
        Folder to write a zarr group to, for more than fits into memory; it appears when it is complete.
    overwrite
        Replace ``out`` if it exists.
    modality, layer, use_raw, gene_key, hidden_layer, max_tokens, device, dtype, options
        As for :func:`scfm.tl.embed`.
    compat
        ``"upstream"``: everything as the model's own code does. TranscriptFormer's gives each gene the state *before*
        it was read, which knows nothing of the gene itself.

    Returns
    -------
    A :class:`sparse.GCXS` array, float32, shape ``(n_obs, n_genes, n_features)``; zero where a gene is not expressed,
    has no token, or did not fit into the input. It takes 12 bytes a value: 24 kB for each gene of a cell at 2,048
    features. With ``out`` its path; the group holds ``states`` ``(n, n_features)``, ``genes`` ``(n,)`` (positions in
    ``gene_names``), ``indptr`` ``(n_obs + 1,)``, ``obs_names``, ``gene_names`` and the attribute ``params``: the genes
    of cell ``i`` are rows ``indptr[i]`` to ``indptr[i + 1]``.

    Raises
    ------
    KeyError
        If a gene is not in ``var_names``.
    FileExistsError
        If ``out`` exists and is not to be overwritten.
    TypeError, ValueError
        As :func:`scfm.tl.embed`.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()[:10]
    >>> states = scfm.tl.gene_embeddings(adata, "scfm-mini", genes=["CD3D", "LYZ"])
    >>> states.shape
    (10, 2, 128)
    """
    check_options(options, "tl.gene_embeddings", "pooling", "groupby", "key_added")
    target = None if out is None else Path(out).expanduser()
    if target is not None:
        replaceable = overwrite and (target / "zarr.json").exists()
        check_new(target, overwrite=replaceable, hint="replace a zarr group with overwrite=True")
    loaded = model if isinstance(model, FoundationModel) else load(model)
    where: dict[str, Any] = {"modality": modality, "layer": layer, "use_raw": use_raw, "gene_key": gene_key}
    how: dict[str, Any] = {"hidden_layer": hidden_layer, "max_tokens": max_tokens, "compat": compat, **options}
    with loaded.session(data, pooling="gene", device=device, dtype=dtype, **where, **how) as session:
        columns = columns_of(session.source.var.index, genes)
        if target is None:
            states = SparseStates((session.source.n_obs, len(columns), session.model.n_features))
            _run(session, columns, states)
            return states.array()
        return _stream(session, columns, target)


def _run(session: Session, columns: np.ndarray, writer: SparseStates | ZarrStates) -> dict[str, Any]:
    """Read few cells at a time, because the states of a block are held until it is complete."""
    at_most = min(len(columns), session.model.max_genes(session.choices))
    rows = max(1, BLOCK_BYTES // max(1, 4 * at_most * session.model.n_features))
    sink = GeneStatesSink(session.genes.tokens[columns], writer)
    return session.params(session.into(sink, block_rows=rows))


def _stream(session: Session, columns: np.ndarray, target: Path) -> Path:
    with atomic(target, overwrite=True) as work:
        writer = ZarrStates(work, session.source.n_obs, session.model.n_features)
        params = _run(session, columns, writer)
        writer.finish(session.source.obs_names, session.source.var.index[columns], params)
    return target


def columns_of(names: pd.Index, genes: Sequence[str] | None) -> np.ndarray:
    """Positions of genes among the names; all if none are given, a KeyError for one that is not there."""
    if genes is None:
        return np.arange(len(names))
    wanted = pd.Index([genes] if isinstance(genes, str) else list(genes))
    missing = wanted[~wanted.isin(names)]
    if len(missing):
        msg = (
            f"{len(missing)} genes are not in var_names, such as {missing[0]!r}; var_names look like {list(names[:3])}."
        )
        raise KeyError(msg)
    return first_index(names, wanted)
