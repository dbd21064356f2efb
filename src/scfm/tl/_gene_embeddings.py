"""The embedding of every gene in every cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfm._docs import with_parameters
from scfm._paths import atomic, check_new
from scfm.model import load
from scfm.model.arguments import Arguments
from scfm.run.sinks import SparseStates, ZarrStates
from scfm.tasks import GeneStates

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import sparse
    import torch
    from anndata import AnnData
    from mudata import MuData

    from scfm._types import Compat
    from scfm.model import FoundationModel
    from scfm.model.session import CountSession
    from scfm.run.device import Device

__all__ = ["gene_embeddings"]


@with_parameters
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
    device: Device | Sequence[Device] | None = None,
    dtype: str | torch.dtype | None = None,
    compat: Compat | None = None,
    **options: Any,
) -> sparse.GCXS | Path:
    """Compute contextual gene embeddings: the hidden state of each expressed gene in each cell.

    The state is taken after the network has read the gene and its count. Means over cells are one call less:
    ``scfm.tl.embed(adata, model, pooling="gene", groupby=...)``.

    Parameters
    ----------
    %(data)s For some cells pass ``adata[cells]``.
    %(model)s
    %(genes)s
    out
        Folder to write a zarr group to, for more than fits into memory; it appears when it is complete.
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
    A :class:`sparse.GCXS` array, float32, shape ``(n_obs, n_genes, n_features)``; zero where a gene is not expressed,
    has no token, or did not fit into the input. It takes 12 bytes a value: 24 kB for each gene of a cell at 2,048
    features. With ``out`` its path; the group holds ``states`` ``(n, n_features)``, ``genes`` ``(n,)`` (positions in
    ``gene_names``), ``indptr`` ``(n_obs + 1,)``, ``obs_names``, ``gene_names`` and the attribute ``params``: the genes
    of cell ``i`` are rows ``indptr[i]`` to ``indptr[i + 1]``.

    Raises
    ------
    KeyError
        If a gene is not found.
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
            replaces=lambda folder: (folder / "states" / "zarr.json").exists(),
        )
    with load(model).count_session(data, arguments) as session:
        columns = session.columns_of(genes)
        if target is None:
            states = SparseStates((session.source.n_obs, len(columns), session.model.n_features))
            _run(session, columns, states)
            return states.array()
        return _stream(session, columns, target)


def _run(session: CountSession, columns: np.ndarray, writer: SparseStates | ZarrStates) -> dict[str, Any]:
    model, options = session.model, session.options
    tokens = session.genes.tokens[columns]
    task = GeneStates(model, options, tokens, model.max_genes(options), model.n_features, writer)
    return session.params(session.run(task))


def _stream(session: CountSession, columns: np.ndarray, target: Path) -> Path:
    with atomic(target, overwrite=True) as work:
        writer = ZarrStates(work, session.source.n_obs, session.model.n_features)
        params = _run(session, columns, writer)
        writer.finish(session.source.obs_names, session.source.var.index[columns], params)
    return target
