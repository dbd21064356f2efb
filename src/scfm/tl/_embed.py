"""Embeddings of cells and genes."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._keys import PARAMS, result_keys
from scfm._write import Results
from scfm.model import load
from scfm.model.arguments import Arguments
from scfm.read import is_tokenized
from scfm.tl._embed_tokenized import write_tokenized
from scfm.tl._target import check_paths, target_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from anndata import AnnData
    from mudata import MuData

    from scfm._types import Compat, Quantization
    from scfm.model import FoundationModel
    from scfm.model.arguments import SharedWith
    from scfm.run.device import Device

__all__ = ["embed"]


@typed
@with_parameters
def embed(
    data: AnnData | MuData | str | Path,
    model: str | Path | FoundationModel,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
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
    quantize: Quantization | None = None,
    shared_with: SharedWith = None,
    groupby: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
    **options: Any,
) -> AnnData | MuData | Path | None:
    """Embed cells with a foundation model.

    Parameters
    ----------
    %(data)s Or a tokenised dataset, as for :func:`scfm.tl.embed_tokenized`, with an ``.h5ad`` file as ``out``.
    %(model)s
    %(out)s
    %(matrix)s
    %(pooling)s
    %(hidden_layer)s
    %(max_tokens)s
    %(device)s
    %(dtype)s
    %(compat)s
    %(quantize)s
    %(shared_with)s
    %(groupby_genes)s
    %(key_added)s
    %(copy)s
    %(options)s

    Returns
    -------
    ``None``, the changed copy with ``copy=True``, or the path ``out``. Sets these fields (``<family>`` of scfm-mini is
    ``scfm_mini``):

    ``.obsm['X_<family>' | key_added]`` : float32, shape ``(n_obs, n_features)``
        Embeddings in the order of the cells. A cell without a gene of the model is NaN if the model has no ``<cls>``.
    ``.varm['X_<family>' | key_added]`` : float32, shape ``(n_vars, n_features)``
        Instead of the former for ``pooling="gene"``; NaN for genes without a token and genes never seen.
        With ``groupby`` the shape is ``(n_vars, n_groups, n_features)``, groups as in ``params["groups"]``.
    ``.uns['<family>' | key_added]['params']`` : dict
        Everything needed to repeat the run.

    Raises
    ------
    %(errors)s
    ImportError
        If the package that ``quantize`` takes is not installed.
    FileExistsError, OSError
        If ``out`` exists and ``overwrite`` is not set, or it cannot be written for want of room or permission.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.tl.embed(adata, model="scfm-mini")
    >>> adata.obsm["X_scfm_mini"].shape
    (700, 128)

    A file is read block by block:

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> adata.write_h5ad(f"{folder}/in.h5ad")
    >>> scfm.tl.embed(f"{folder}/in.h5ad", "scfm-mini", out=f"{folder}/out.h5ad").name
    'out.h5ad'
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
        quantize=quantize,
        shared_with=shared_with,
        options=options,
    )
    result_keys("check", key_added)
    if isinstance(data, str | PathLike) and is_tokenized(data):
        source, written = check_paths(data, "embed", out=out, copy=copy)
        return write_tokenized(source, model, written, arguments, groupby, key_added, overwrite=overwrite)
    target = target_of(data, "embed", modality=modality, out=out, overwrite=overwrite, copy=copy)
    loaded = load(model)
    keys = result_keys(loaded.family, key_added)
    slot, row_bytes = ("varm", 0) if pooling == "gene" else ("obsm", 4 * loaded.n_features)
    target.check_free(keys.uns, (slot, keys.obsm))
    target.check_room(row_bytes)
    embedding = loaded.run(target.data, arguments, groupby=groupby)
    if embedding.axis == "var":
        values = {keys.obsm: embedding.in_order_of(target.var_names)}
        return target.store(Results(varm=values, uns={keys.uns: {PARAMS: embedding.params}}))
    return target.store(Results(obsm={keys.obsm: embedding.values}, uns={keys.uns: {PARAMS: embedding.params}}))
