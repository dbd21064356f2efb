"""Tiny models in folders that tests damage, and what must come of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scfm
from scfm.testing import write_geneformer, write_transcriptformer

if TYPE_CHECKING:
    from pathlib import Path

N_GENES = 12
IDS = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]
LFS, PAGE = b"version https://git-lfs.github.com/spec/v1\n", b"\n<!DOCTYPE html>"


def write_sources(root: Path) -> dict[str, Path]:
    """A model of ranked genes and a TranscriptFormer, as published and converted."""
    sizes: dict[str, Any] = {"n_genes": N_GENES, "n_layers": 2, "hidden_size": 8, "max_tokens": 16}
    ranked = write_geneformer(root / "published", **sizes)
    ordered = write_transcriptformer(root / "tf", n_genes=N_GENES, n_layers=2, embed_dim=8, gene_width=6)
    return {
        "published": ranked,
        "bin": write_geneformer(root / "bin", **sizes, weights="pytorch_model.bin"),
        "v1": write_geneformer(root / "v1", **sizes, version=1),
        "converted": scfm.model.convert(ranked, root / "converted"),
        "tf": ordered,
        "converted tf": scfm.model.convert(ordered, root / "converted-tf"),
        "baseline": scfm.model.convert(ordered, root / "baseline", family="esm2ce"),
    }


def cells(genes: list[str] = IDS) -> ad.AnnData:
    values = np.random.default_rng(0).poisson(1, (5, len(genes))).astype(np.float32) + 1
    obs = pd.DataFrame({"empty": [np.nan] * 5}, index=pd.Index([f"cell{i}" for i in range(5)]))
    return ad.AnnData(values, obs=obs, var=pd.DataFrame({"ensembl_id": genes}, index=genes))


def change_json(path: Path, changes: dict[str, Any]) -> None:
    """Merge entries into a JSON object, sections into sections; ``...`` takes one out."""

    def merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
        for name, value in changes.items():
            if value is ...:
                del values[name]
            elif isinstance(value, dict) and value and isinstance(values.get(name), dict):
                merge(values[name], value)
            else:
                values[name] = value

    values = json.loads(path.read_text())
    merge(values, changes)
    path.write_text(json.dumps(values))


def refused(folder: str | Path, match: str, error: type[Exception] = ValueError) -> None:
    """Embedding with the model of a folder raises, and nothing is stored."""
    adata = cells()
    with pytest.raises(error, match=match):
        scfm.tl.embed(adata, folder)
    assert not list(adata.obsm) + list(adata.uns)
