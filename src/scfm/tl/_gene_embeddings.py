"""The embedding of every gene in every cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._keys import PARAMS
from scfm._paths import atomic, check_new
from scfm._write import is_anndata_store
from scfm.model import load
from scfm.model.arguments import Arguments
from scfm.run.sinks import StatesTable, ZarrStates
from scfm.tasks import GeneStates

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from anndata import AnnData
    from mudata import MuData

    from scfm._types import Compat
    from scfm.model import FoundationModel
    from scfm.model.session import CountSession
    from scfm.run.device import Device
    from scfm.run.sinks import StatesWriter

__all__ = ["gene_embeddings"]


@typed
@with_parameters
def gene_embeddings(
    data: AnnData | MuData | str | Path,
    model: str | Path | FoundationModel,
    *,
    genes: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    modality: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    hidden_layer: int | None = None,
    max_tokens: int | None = None,
    device: Device | Sequence[Device] | None = None,
    dtype: str | torch.dtype | None = None,
    compat: Compat | None = None,
    **options: Any,
) -> AnnData | Path:
    """Compute contextual gene embeddings: the hidden state of each expressed gene in each cell.

    The state is taken after the network has read the gene and its count. Means over cells are one call less:
    ``scfm.tl.embed(adata, model, pooling="gene", groupby=...)``.

    Parameters
    ----------
    %(data)s For some cells pass ``adata[cells]``.
    %(model)s
    %(genes)s
    out
        Zarr store to write, for more than fits into memory; it appears when it is complete.
    overwrite
        Replace ``out`` if it exists.
    %(matrix)s
    %(hidden_layer)s
    %(max_tokens)s
    %(device)s
    %(dtype)s
    compat
        ``"upstream"``: everything as the model's own code does. TranscriptFormer's gives each gene the state *before*
        it was read, which knows nothing of the gene itself.
    %(options)s

    Returns
    -------
    A new AnnData with a row for each gene of each cell, or the path ``out`` of a zarr store that holds it
    (:func:`anndata.read_zarr`). It has these fields:

    ``.X`` : float32, shape ``(n, n_features)``
        States, cell by cell, and within a cell in the order of the genes. There is none of a gene that the cell does not
        express, that has no token, or that did not fit into the input. 8 kB a row at 2,048 features.
    ``.obs['cell']`` and ``.obs['gene']`` : category
        Names as in ``obs_names`` and ``var_names`` of the data, repeated ones numbered as anndata does it; the categories
        are all cells and all genes that were asked for.
    ``.uns['<family>']['params']`` : dict
        Everything needed to repeat the run.

    Raises
    ------
    %(errors)s
    FileExistsError
        If ``out`` exists and is not to be overwritten.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()[:10]
    >>> states = scfm.tl.gene_embeddings(adata, "scfm-mini", genes=["CD3D", "LYZ"])
    >>> states.n_vars, states.obs["gene"].cat.categories.tolist()
    (128, ['CD3D', 'LYZ'])
    >>> lyz = states[states.obs["gene"] == "LYZ"].to_df()
    """
    arguments = Arguments(
        modality=modality,
        layer=layer,
        use_raw=use_raw,
        gene_key=gene_key,
        pooling="gene",
        hidden_layer=hidden_layer,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
        compat=compat,
        options=options,
    )
    target = None if out is None else Path(out).expanduser()
    if target is not None:
        check_new(
            target,
            overwrite=overwrite,
            hint="replace an earlier result with overwrite=True",
            replaces=is_anndata_store,
        )
    with load(model).count_session(data, arguments) as session:
        columns = session.columns_of(genes)
        names = session.source.obs_names, session.source.var.index[columns], session.model.n_features
        if target is None:
            states = StatesTable(*names)
            return states.table(_run(session, columns, states))
        with atomic(target, overwrite=True) as work:
            writer = ZarrStates(work, *names)
            writer.finish(_run(session, columns, writer))
        return target


def _run(session: CountSession, columns: np.ndarray, writer: StatesWriter) -> dict[str, Any]:
    """Compute the states; returns what goes to ``uns``."""
    model, options = session.model, session.options
    tokens = session.genes.tokens[columns]
    task = GeneStates(model, options, tokens, model.max_genes(options), model.n_features, writer)
    return {model.family: {PARAMS: session.params(session.run(task))}}
