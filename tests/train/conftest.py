"""A small corpus: two files with other genes, and the vocabulary of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scfm.genes import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GENES = [f"ENSG{i:011d}" for i in range(1, 61)]
SIZES = {"n_layers": 1, "hidden_size": 16, "n_heads": 2, "intermediate_size": 32, "max_positions": 40}


def write_cells(path: Path, n: int, genes: list[str], seed: int) -> Path:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(3, size=n)
    means = np.random.default_rng(0).gamma(0.5, 4.0, (3, len(genes)))
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(means[kinds]).astype(np.float32)))
    adata.var_names, adata.obs["cell_type"] = genes, [f"kind {kind}" for kind in kinds]
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``one.h5ad`` and ``two.h5ad`` share 30 of 60 genes; ``genes`` is the folder of a vocabulary with all."""
    from scfm.model.families.scfm_mini import ScfmMini

    folder = tmp_path_factory.mktemp("corpus")
    write_cells(folder / "one.h5ad", 80, GENES[:50], 0)
    write_cells(folder / "two.h5ad", 40, GENES[20:], 1)
    tokens = np.arange(2, 62, dtype=np.int32)
    vocabulary = Vocabulary(np.array(GENES), tokens, np.linspace(1, 2, 60), {"<pad>": 0, "<mask>": 1})
    (folder / "genes").mkdir()
    vocabulary.save(folder / "genes")
    ScfmMini.new_card("genes", SIZES, vocabulary).write(folder / "genes")
    return folder


@pytest.fixture(scope="session")
def config(corpus: Path) -> Callable[..., dict[str, Any]]:
    """Makes a config of a few steps; changes of parts are added to them."""

    def make(**changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "files": [str(corpus / "*.h5ad")],
            "family": "scfm_mini",
            "steps": 6,
            "architecture": SIZES,
            "genes": {"source": str(corpus / "genes")},
            "sampling": {"batch_cells": 8},
            "validation": {"cells": 8, "every": 3},
            "checkpoint_every": 2,
            "objectives": {"masked_genes": {}, "contrastive": {"weight": 0.5}},
            "views": {"least_genes": 10, "least_expressed": 5},
            "machine": {"accelerator": "cpu", "threads": 1},
        }
        for name, value in changes.items():
            added = isinstance(value, dict) and name not in ("objectives", "genes")
            values[name] = {**values[name], **value} if added and name in values else value
        return values

    return make
