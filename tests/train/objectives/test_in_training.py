"""Every objective in a run of its own: it learns, and the result keeps what belongs to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
from safetensors.numpy import load_file

import scfm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("lightning")


@pytest.fixture(scope="module")
def labelled(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with the names of cell types."""
    folder = tmp_path_factory.mktemp("labelled")
    names = dict(zip((f"kind {i}" for i in range(3)), ("T cell", "B cell", "fibroblast"), strict=True))
    for path in corpus.glob("*.h5ad"):
        adata = ad.read_h5ad(path)
        adata.obs["cell_type"] = adata.obs["cell_type"].map(names)
        adata.write_h5ad(folder / path.name)
    return folder


@pytest.mark.parametrize(
    ("objective", "changes", "tensors"),
    [
        ({"masked_genes": {"candidates": 20}}, {}, {"cls.predictions.transform.dense.weight", "cls.predictions.bias"}),
        ({"contrastive": {"negatives": "source", "projection": 8}}, {}, set()),
        (
            {"sccello": {}},
            {"family": "sccello", "labels_key": "cell_type", "genes": {"min_cells": 1}},
            {"learned_centroid.weight", "ctgraph_sim", "cell_cls.predictions.dense_1.weight", "affine_projection.bias"},
        ),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_a_loss_falls(
    objective: dict[str, Any],
    changes: dict[str, Any],
    tensors: set[str],
    labelled: Path,
    config: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    run = config(
        files=[str(labelled / "*.h5ad")],
        objectives=objective,
        steps=40,
        optimiser={"warmup": 2, "learning_rate": 0.01},
        **changes,
    )
    folder = scfm.train.pretrain(config=run, out=tmp_path / "model")
    curve = [loss for _, loss in scfm.model.load(folder).card.training["curves"]["train/loss"]]
    assert np.mean(curve[-5:]) < np.mean(curve[:5])
    assert scfm.model.load(folder).embed(labelled / "one.h5ad").shape == (80, 16)
    assert tensors <= set(load_file(folder / "model.safetensors"))
