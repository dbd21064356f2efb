"""A few cells with genes of a model, in every container, for :func:`scfm.testing.check_model`."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from scfm.model import FoundationModel

__all__ = ["cells_of", "containers_of", "descending", "fingerprint", "with_values"]

N_CELLS, N_GENES = 12, 40


def cells_of(model: FoundationModel) -> ad.AnnData:
    """Cells that express 5 to 100 % of 40 genes, with many ties, totals, and the labels that the model reads."""
    at = np.unique(np.linspace(0, len(model.vocabulary.genes) - 1, N_GENES).astype(int))
    genes = model.vocabulary.genes[at].tolist()
    rng = np.random.default_rng(0)
    expressed = rng.random((N_CELLS, len(genes))) < np.linspace(0.05, 1, N_CELLS)[:, None]
    values = expressed * (1 + rng.poisson(1.5, expressed.shape))
    values[:, 0] = 1  # no cell is empty
    values = rng.permutation(values).astype(np.float32)
    obs = pd.DataFrame(index=pd.Index([f"cell{i:02d}" for i in range(N_CELLS)], name="barcode"))
    obs["n_counts"] = values.sum(axis=1).astype(np.float32)
    for column, labels in model.card.aux_tokens.items():
        obs[column] = np.resize(np.array([*labels, "a label that no model knows"], dtype=object), N_CELLS)
    var = pd.DataFrame({"ensembl_id": genes}, index=genes)
    return ad.AnnData(sparse.csr_matrix(values), obs=obs, var=var)


def with_values(cells: ad.AnnData, values: Any) -> ad.AnnData:
    """The same cells and genes with another matrix."""
    return ad.AnnData(values, obs=cells.obs.copy(), var=cells.var.copy())


def descending(values: NDArray[np.float32]) -> sparse.csr_matrix:
    """CSR matrix whose rows are stored from the last column to the first."""
    x = sparse.csr_matrix(values)
    for start, end in zip(x.indptr[:-1], x.indptr[1:], strict=True):
        x.indices[start:end], x.data[start:end] = x.indices[start:end][::-1].copy(), x.data[start:end][::-1].copy()
    x.has_sorted_indices = False
    return x


def containers_of(cells: ad.AnnData, folder: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The same counts in all containers: name, container, and the arguments that select the counts."""
    import mudata as md

    dense: NDArray[np.float32] = cells.X.toarray()
    yield "a dense matrix", with_values(cells, dense), {}
    yield "a CSC matrix", with_values(cells, sparse.csc_matrix(dense)), {}
    yield "integers", with_values(cells, cells.X.astype(np.int32)), {}
    yield "a view", ad.concat([cells[::-1], cells], index_unique="-", merge="same")[cells.n_obs :], {}
    cells.write_h5ad(folder / "cells.h5ad")
    yield "the path of an .h5ad file", folder / "cells.h5ad", {}
    backed = ad.read_h5ad(folder / "cells.h5ad", backed="r")
    yield "a backed AnnData", backed, {}
    backed.file.close()
    with ad.settings.override(zarr_write_format=3):
        cells.write_zarr(folder / "cells.zarr")
    yield "the path of a .zarr store", folder / "cells.zarr", {}
    other = ad.AnnData(np.ones((cells.n_obs, 2), np.float32), obs=cells.obs[[]])
    yield "a MuData", md.MuData({"rna": cells, "other": other}), {"modality": "rna"}


def fingerprint(adata: ad.AnnData) -> str:
    """Hash of X, layers, raw, obs and var, including the storage order of values."""
    digest = hashlib.sha256()
    for x in (adata.X, *adata.layers.values(), adata.raw.X):
        for part in (x,) if isinstance(x, np.ndarray) else (x.data, x.indices, x.indptr):
            digest.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
    for frame in (adata.obs, adata.var, adata.raw.var):
        digest.update(frame.to_csv().encode() + str(frame.dtypes.to_dict()).encode())
    return digest.hexdigest()
