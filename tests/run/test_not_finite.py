"""What a network gives that is not finite is counted, recorded and warned about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest

import scfm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch
    from anndata import AnnData

BAD = [2, 7]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A model whose network overflows for two cells."""
    model = scfm.model.load("scfm-mini")
    forward = model.forward

    def overflowing(network: Any, batch: Any, options: Any) -> torch.Tensor:
        output = forward(network, batch, options).clone()
        of_rows = batch.rows if len(output) == len(batch.rows) else np.repeat(batch.rows, batch.lengths)
        output[np.isin(of_rows, BAD), 5] = np.inf
        return output

    monkeypatch.setattr(model, "forward", overflowing)
    return model


VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "cells": lambda adata, model: scfm.tl.embed(adata, model) or adata.uns["scfm_mini"]["params"],
    "means of genes": lambda adata, model: (
        scfm.tl.embed(adata, model, pooling="gene") or adata.uns["scfm_mini"]["params"]
    ),
    "genes of cells": lambda adata, model: scfm.tl.gene_embeddings(adata, model).uns["scfm_mini"]["params"],  # type: ignore[union-attr]
}


@pytest.mark.parametrize("kind", VERBS)
@pytest.mark.parametrize("block_rows", [3, 4096])
def test_results_that_are_not_finite(kind: str, block_rows: int, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adata: AnnData = scfm.datasets.pbmc68k()[:10].copy()
    monkeypatch.setattr(scfm.settings, "block_rows", block_rows)
    with pytest.warns(UserWarning, match=r"2 of 10 cells have results that are not finite .*weights are damaged"):
        params = VERBS[kind](adata, model)
    assert params["n_cells_not_finite"] == 2


def test_copies_of_a_cell_count_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adata: AnnData = scfm.datasets.pbmc68k()[:10].copy()
    monkeypatch.setattr("scfm.model.session.default_batch_tokens", lambda _: 300)
    with pytest.warns(UserWarning, match="2 of 10 cells have results that are not finite"):
        scfm.tl.perturb(adata, model, device="cpu")
    assert adata.uns["perturb"]["params"]["n_cells_not_finite"] == 2


def test_in_a_store(model: Any, tmp_path: Path) -> None:
    scfm.datasets.pbmc68k()[:10].copy().write_h5ad(tmp_path / "a.h5ad")
    with pytest.warns(UserWarning, match="2 of 10 cells have results that are not finite"):
        out = scfm.tl.embed_store(tmp_path / "a.h5ad", model, tmp_path / "store.zarr", shard_rows=4)
    found = ad.read_zarr(out)
    assert found.uns["scfm_mini"]["params"]["n_cells_not_finite"] == 2
    assert np.flatnonzero(~np.isfinite(found.obsm["X_scfm_mini"]).all(axis=1)).tolist() == BAD


def test_where_all_is_finite() -> None:
    adata = scfm.datasets.pbmc68k()[:10].copy()
    scfm.tl.embed(adata, "scfm-mini")
    assert "n_cells_not_finite" not in adata.uns["scfm_mini"]["params"]
