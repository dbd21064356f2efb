"""Embeddings of more cells than fit into memory, into a store on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._keys import PARAMS, made_by, result_keys
from scfm.model.arguments import Arguments
from scfm.run.device import local_device
from scfm.run.plan import CHUNK_ROWS, ShardedArray, StorePlan
from scfm.run.sinks import RowsCollector
from scfm.tasks import Embed
from scfm.tl._fill import Filling, fill_store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from distributed import Client
    from numpy.typing import NDArray

    from scfm._keys import Keys
    from scfm._types import Compat, Quantization
    from scfm.model import FoundationModel
    from scfm.model.arguments import SharedWith
    from scfm.model.session import Session
    from scfm.run.device import Device
    from scfm.run.store import ShardStore

__all__ = ["embed_store"]

SHARD_BYTES = 2**25
"""Of the embeddings of a shard."""


@typed
@with_parameters
def embed_store(
    source: str | Path | Sequence[str | Path],
    model: str | Path | FoundationModel,
    out: str | Path,
    *,
    shard: str | None = None,
    shard_rows: int | None = None,
    resume: bool = True,
    into_source: bool = False,
    client: Client | None = None,
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
    key_added: str | None = None,
    **options: Any,
) -> Path:
    """Embed the cells of one or more files into a zarr store, in memory that does not grow with the number of cells.

    Cells are computed in shards of consecutive rows. A finished shard stays finished: called again with the same
    arguments after an interruption, only the missing shards are computed. Several processes may fill one store, each
    with its own ``shard``.

    Parameters
    ----------
    %(store_source)s
    %(model)s
    out
        Folder of the store; made if it does not exist.
    %(store_shard)s
    shard_rows
        Cells of a shard, a multiple of 1,024 or less than that; by default as many as give about 32 MiB.
    %(store_fill)s
    %(matrix)s
    pooling
        As for :func:`scfm.tl.embed`, except ``"gene"``.
    %(hidden_layer)s
    %(max_tokens)s
    %(device)s
    %(dtype)s
    %(compat)s
    %(quantize)s
    %(shared_with)s
    %(key_added)s
    %(options)s

    Returns
    -------
    ``out``. :func:`anndata.read_zarr` opens it: ``obs_names`` as in the source, ``obsm['X_<family>' | key_added]``
    float32 of shape ``(n_obs, n_features)``, NaN in shards that are not finished, and
    ``uns['<family>' | key_added]['params']``. For several files ``obs['file']`` names the file of each cell, and entries
    of ``params`` that differ between them are lists.

    Raises
    ------
    FileExistsError
        If ``out`` is no such store, was made of another or since changed source or with other parameters, or exists
        and ``resume`` is off.
    RuntimeError
        If another process is computing the same shards.
    OSError
        If ``out``, or with ``into_source`` a source, cannot be written, or the disk has no room for what is missing.
    ImportError
        If the package that ``quantize`` takes is not installed.
    %(errors)s

    Examples
    --------
    >>> import scfm, tempfile, anndata
    >>> folder = tempfile.mkdtemp()
    >>> scfm.datasets.pbmc68k().write_h5ad(f"{folder}/cells.h5ad")
    >>> out = scfm.tl.embed_store(f"{folder}/cells.h5ad", "scfm-mini", f"{folder}/embedding.zarr")
    >>> anndata.read_zarr(out).obsm["X_scfm_mini"].shape
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
        device=local_device() if shard == "auto" and device is None else device,
        dtype=dtype,
        compat=compat,
        quantize=quantize,
        shared_with=shared_with,
        options=options,
    )
    if pooling == "gene":
        msg = "pooling='gene' gives one vector per gene, which fits into memory: use scfm.tl.embed."
        raise ValueError(msg)
    work = EmbedWork(key_added)
    how = Filling(shard, shard_rows, resume=resume, into_source=into_source)
    return fill_store(source, model, out, arguments, work, how, client)


@dataclass(frozen=True)
class EmbedWork:
    """Embeddings of cells."""

    key_added: str | None
    verb: ClassVar[str] = "embed"

    def open(self, session: Session) -> EmbedFiller:
        """What it takes to fill a store."""
        return EmbedFiller(session, result_keys(session.model.family, self.key_added))


class EmbedFiller:
    """Fills a store with embeddings."""

    cells: NDArray[np.int64] | None = None

    def __init__(self, session: Session, keys: Keys) -> None:
        self._session, self.path = session, f"obsm/{keys.obsm}"
        self.key, self.places = keys.uns, [("obsm", keys.obsm)]
        self.parameters: dict[str, Any] = {}
        self.row_bytes = 4 * session.model.n_features

    def plan(self, shard_rows: int | None) -> StorePlan:
        """Lay out an array with a row for each cell."""
        n_obs, n_features = self._session.source.n_obs, self._session.model.n_features
        rows = shard_rows or max(1, SHARD_BYTES // (4 * n_features * CHUNK_ROWS)) * CHUNK_ROWS
        array = ShardedArray(self.path, (n_obs, n_features), "float32", np.nan, rows, min(rows, CHUNK_ROWS))
        params = made_by("embed") | self._session.description()
        return StorePlan("embed", self.key, [array], rows, {PARAMS: params})

    def task(self, store: ShardStore) -> tuple[Embed, RowsCollector]:
        """What is computed, and what collects it."""
        collector = RowsCollector(self.path, self._session.model.n_features)
        return Embed(self._session.model, self._session.options, collector), collector
