"""scfm.pl.attention: what is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch
from scipy import sparse

import scfm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

GENES = ["LYZ", "NKG7", "CD74"]


@pytest.fixture(scope="module")
def adata() -> AnnData:
    cells = scfm.datasets.pbmc68k()[:30].copy()
    scfm.tl.attention(cells, "scfm-mini", genes=GENES)
    return cells


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    mpl.use("Agg")
    yield
    plt.close("all")


def test_a_heatmap_has_the_weights(adata: AnnData) -> None:
    axes = scfm.pl.attention(adata, GENES, n_genes=6, show=False)
    shown = axes.images[0].get_array()
    assert shown.shape == (3, 6)
    rows, columns = (
        [label.get_text() for label in labels] for labels in (axes.get_yticklabels(), axes.get_xticklabels())
    )
    assert sorted(rows) == sorted(GENES)
    weights = adata.varp["attention"][adata.var_names.get_indexer(rows)][:, adata.var_names.get_indexer(columns)]
    np.testing.assert_allclose(np.ma.filled(shown, 0), weights.toarray(), rtol=1e-6)


def test_a_graph_has_the_heaviest_pairs(adata: AnnData) -> None:
    axes = scfm.pl.attention(adata, kind="graph", n_edges=12, show=False)
    pairs = scfm.get.attention_df(adata)
    pairs = pairs[pairs["query"] != pairs["key"]].head(12)
    assert len([patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]) == 12
    assert {text.get_text() for text in axes.texts} == {*pairs["query"], *pairs["key"]}


def test_what_is_refused(adata: AnnData) -> None:
    with pytest.raises(ValueError, match="n_genes"):
        scfm.pl.attention(adata, n_genes=0)
    with pytest.raises(KeyError, match="There is no attention of"):
        scfm.pl.attention(adata, "CD3D")
    alone = adata.copy()
    for weights in (sparse.eye_array(alone.n_vars, format="csr"), sparse.csr_array((alone.n_vars, alone.n_vars))):
        alone.varp["attention"] = weights
        with pytest.raises(ValueError, match="holds no pair of two genes"):
            scfm.pl.attention(alone)
