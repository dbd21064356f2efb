"""Every task runs on several devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import scfm
from scfm.testing import write_transcriptformer
from tests.rounding import close

if TYPE_CHECKING:
    from pathlib import Path

BOTH = ["cpu", "cpu"]


def test_gene_means_and_states() -> None:
    adata, model = scfm.datasets.pbmc68k()[:40].copy(), scfm.model.load("scfm-mini")
    one = model.embed(adata, pooling="gene", device="cpu")
    close(model.embed(adata, pooling="gene", device=BOTH), one)
    states = scfm.tl.gene_embeddings(adata, model, genes=["CD3D", "LYZ"], device="cpu")
    shared = scfm.tl.gene_embeddings(adata, model, genes=["CD3D", "LYZ"], device=BOTH)
    close(shared.X, states.X)


def test_masked_genes() -> None:
    adata, model = scfm.datasets.pbmc68k()[:6].copy(), scfm.model.load("scfm-mini")
    scfm.tl.marker_genes(adata, model, device="cpu", key_added="one")
    scfm.tl.marker_genes(adata, model, device=BOTH, key_added="two")
    np.testing.assert_allclose(adata.layers["two"].toarray(), adata.layers["one"].toarray(), atol=1e-6)


def test_scores(tmp_path: Path) -> None:
    model = scfm.model.load(write_transcriptformer(tmp_path))
    adata = scfm.datasets.synthetic(30, 40, genes_per_cell=8, genes=model.vocabulary.genes[:40])
    scfm.tl.score(adata, model, device="cpu", key_added="one")
    scfm.tl.score(adata, model, device=BOTH, key_added="two")
    for name in ("count", "gene"):
        np.testing.assert_allclose(adata.obs[f"two_{name}_llh"], adata.obs[f"one_{name}_llh"], rtol=1e-5)
