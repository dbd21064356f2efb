"""A tiny Geneformer, and cells of three kinds from six donors that it can tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scfm
from scfm.testing import write_geneformer

if TYPE_CHECKING:
    from scfm.model import FoundationModel

N_GENES, N_CELLS = 40, 96
KINDS = ("B cell", "NK cell", "T cell")


def make_cells(n: int = N_CELLS, seed: int = 0) -> ad.AnnData:
    """Cells whose kind decides which ten genes are expressed most; ``age`` follows one gene."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(n) % len(KINDS)
    means = np.full((len(KINDS), N_GENES), 0.5)
    for kind in range(len(KINDS)):
        means[kind, 10 * kind : 10 * kind + 10] = 6.0
    counts = rng.poisson(means[kinds]).astype(np.float32)
    counts[:, -1] = 1
    obs = pd.DataFrame(index=[f"cell {i}" for i in range(n)])
    obs["kind"] = pd.Categorical(np.array(KINDS)[kinds])
    obs["donor"] = [f"donor {i}" for i in rng.integers(6, size=n)]
    obs["age"] = 20.0 + 10.0 * kinds + rng.normal(size=n)
    obs["stage"] = np.where(kinds == 0, "early", "late")
    var = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(1, N_GENES + 1)])
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)


@pytest.fixture
def cells() -> ad.AnnData:
    return make_cells()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> FoundationModel:
    """Two layers of 16 features."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return scfm.model.load(write_geneformer(folder, n_genes=N_GENES, n_layers=2, max_tokens=48))
