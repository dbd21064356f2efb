"""Embeddings of cells and genes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from scfm._docs import with_parameters
from scfm._keys import PARAMS, result_keys
from scfm.model import load
from scfm.model.arguments import Arguments
from scfm.tl._target import check_container, check_writable, target_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from anndata import AnnData
    from mudata import MuData

    from scfm._types import Compat
    from scfm.model import Embedding, FoundationModel
    from scfm.run.device import Device

__all__ = ["embed"]

logger = logging.getLogger("scfm")


@with_parameters
def embed(
    data: AnnData | MuData,
    model: str | Path | FoundationModel,
    *,
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
    groupby: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
    **options: Any,
) -> AnnData | MuData | None:
    """Embed cells with a foundation model.

    Parameters
    ----------
    %(data)s
    %(model)s
    %(matrix)s
    %(pooling)s
    %(hidden_layer)s
    %(max_tokens)s
    %(device)s
    %(dtype)s
    %(compat)s
    %(groupby_genes)s
    %(key_added)s
    %(copy)s
    %(options)s

    Returns
    -------
    ``None``, or the changed copy with ``copy=True``. Sets these fields (``<family>`` of scfm-mini is ``scfm_mini``):

    ``.obsm['X_<family>' | key_added]`` : float32, shape ``(n_obs, n_features)``
        Embeddings in the order of the cells. A cell without a gene of the model is NaN if the model has no ``<cls>``.
    ``.varm['X_<family>' | key_added]`` : float32, shape ``(n_vars, n_features)``
        Instead of the former for ``pooling="gene"``; NaN for genes without a token and genes never seen.
        With ``groupby`` the shape is ``(n_vars, n_groups, n_features)``, groups as in ``params["groups"]``.
    ``.uns['<family>' | key_added]['params']`` : dict
        Everything needed to repeat the run.

    Raises
    ------
    TypeError
        If ``data`` is neither AnnData nor MuData, or an option is not known.
    ValueError
        If counts are negative or NaN, no gene matches, or an argument is out of range; nothing is stored then.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()
    >>> scfm.tl.embed(adata, model="scfm-mini")
    >>> adata.obsm["X_scfm_mini"].shape
    (700, 128)
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
        options=options,
    )
    check_container(
        data, "tl.embed", "scfm.model.load(model).embed(path), which returns the array, or the command `scfm embed`"
    )
    result_keys("check", key_added)
    check_writable(data, modality, copy=copy)
    loaded = load(model)
    embedding = loaded.run(data, arguments, groupby=groupby)
    data = data.copy() if copy else data
    _store(target_of(data, modality), embedding, loaded.family, key_added)
    return data if copy else None


def _store(adata: AnnData, embedding: Embedding, family: str, key_added: str | None) -> None:
    keys = result_keys(family, key_added)
    slot, name = (adata.varm, "varm") if embedding.axis == "var" else (adata.obsm, "obsm")
    if keys.obsm in slot:
        logger.info("overwriting .%s[%r]", name, keys.obsm)
    values = embedding.in_order_of(adata.var_names) if embedding.axis == "var" else embedding.values
    slot[keys.obsm] = values
    adata.uns[keys.uns] = {PARAMS: embedding.params}
    logger.info("added .%s[%r] and .uns[%r]", name, keys.obsm, keys.uns)
