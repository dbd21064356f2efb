"""Dask arrays and lazy AnnData objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scfm.read import open_counts
from scfm.read._anndata import matrix_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scfm.read import CountSource


def densified(source: CountSource) -> np.ndarray:
    blocks = list(source.blocks(rows=4))
    parts = [
        sparse.csr_array((block.data, block.indices, block.indptr), shape=(block.n_cells, source.n_vars))
        for block in blocks
    ]
    return sparse.vstack(parts).toarray()


@pytest.mark.parametrize("chunks", [(7, 5), (23, 11), (1, 11), ((3, 0, 20), 11)], ids=str)
@pytest.mark.parametrize("form", ["dense", "csr_matrix", "csc_array"])
def test_dask_arrays(form: str, chunks: Any, x: np.ndarray, build: Callable[..., ad.AnnData]) -> None:
    dask = pytest.importorskip("dask.array")
    made = {"dense": np.asarray, "csr_matrix": sparse.csr_matrix, "csc_array": sparse.csc_array}[form]
    if form != "dense":
        chunks = (chunks[0], 11)  # scipy matrices are not joined along columns by every version of dask
    adata = build()
    adata.X = dask.from_array(x, chunks=chunks).map_blocks(made, meta=made(np.zeros((0, 0), x.dtype)))
    np.testing.assert_array_equal(densified(open_counts(adata)), x)
    np.testing.assert_array_equal(densified(open_counts(adata[[4, 1, 2]])), x[[4, 1, 2]])
    np.testing.assert_array_equal(densified(open_counts(adata[:, 2:5])), x[:, 2:5])


def test_dask_chunks_are_computed_once(x: np.ndarray) -> None:
    dask = pytest.importorskip("dask.array")
    computed: list[int] = []

    def noted(chunk: np.ndarray) -> np.ndarray:
        computed.append(len(chunk))
        return chunk

    array = dask.from_array(x, chunks=(5, 11)).map_blocks(noted, meta=x[:0])
    matrix = matrix_of(array, "X", "AnnData")
    for start in range(0, 23, 2):
        matrix.span(start, min(start + 2, 23))
    assert computed == [5, 5, 5, 5, 3]


def test_dask_arrays_that_are_refused(x: np.ndarray) -> None:
    dask = pytest.importorskip("dask.array")
    array = dask.from_array(x, chunks=(5, 11))
    with pytest.raises(ValueError, match=r"chunks of known sizes is needed \(compute_chunk_sizes\(\)\)"):
        matrix_of(array[array[:, 0] > 0], "X", "AnnData")
    other = array.map_blocks(pd.DataFrame, meta=x[:0])
    with pytest.raises(TypeError, match="has chunks of the type pandas.*DataFrame; numpy arrays or scipy sparse"):
        matrix_of(other, "X", "AnnData").span(0, 2)


def test_a_lazy_anndata(build: Callable[..., ad.AnnData], x: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    adata = build()
    adata.write_h5ad(tmp_path / "a.h5ad")
    with open_counts(ad.experimental.read_lazy(tmp_path / "a.h5ad")) as source:
        np.testing.assert_array_equal(densified(source), x)
        assert list(source.obs_names) == list(adata.obs_names)
        assert list(source.var.index) == list(adata.var_names)
        pd.testing.assert_frame_equal(source.obs, adata.obs, check_names=False)
