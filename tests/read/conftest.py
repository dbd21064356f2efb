from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable

N_OBS, N_VARS, N_RAW = 23, 11, 15
FORMATS: dict[str, Any] = {
    "csr": sparse.csr_matrix,
    "csr_array": sparse.csr_array,
    "csc": sparse.csc_matrix,
    "csc_array": sparse.csc_array,
    "dense": np.ascontiguousarray,
    "fortran": np.asfortranarray,
}


def counts(n_vars: int, seed: int) -> np.ndarray:
    """Counts with empty rows at both ends and in the middle, and one column without any."""
    values = np.random.default_rng(seed).poisson(0.7, (N_OBS, n_vars)).astype(np.float32)
    values[[0, 7, 8, N_OBS - 1]] = 0
    values[:, 3] = 0
    return values


@pytest.fixture
def x() -> np.ndarray:
    return counts(N_VARS, 0)


@pytest.fixture
def raw_x() -> np.ndarray:
    return counts(N_RAW, 1)


@pytest.fixture
def layer_x() -> np.ndarray:
    return counts(N_VARS, 2)


@pytest.fixture
def build(x: np.ndarray, raw_x: np.ndarray, layer_x: np.ndarray) -> Callable[..., ad.AnnData]:
    """Make an AnnData with X, raw and layers["counts"], all different; `raw=False` and so on leave one out."""

    def make(
        form: str = "csr", *, values: np.ndarray | None = None, raw: bool = True, layer: bool = True
    ) -> ad.AnnData:
        to = FORMATS[form]
        obs = pd.DataFrame({"batch": pd.Categorical(["a", "b"] * 11 + ["a"])}, index=[f"cell{i}" for i in range(N_OBS)])
        raw_var = pd.DataFrame({"symbol": [f"R{i}" for i in range(N_RAW)]}, index=[f"raw{i}" for i in range(N_RAW)])
        var = pd.DataFrame({"symbol": [f"S{i}" for i in range(N_VARS)]}, index=[f"gene{i}" for i in range(N_VARS)])
        adata = ad.AnnData(to(x if values is None else values), obs=obs, var=var)
        if raw:
            adata.raw = ad.AnnData(to(raw_x), obs=obs, var=raw_var)
        if layer:
            adata.layers["counts"] = to(layer_x)
        return adata

    return make
