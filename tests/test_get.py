"""Results of verbs, in the forms in which they are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scfm
from tests.rounding import close

if TYPE_CHECKING:
    from pathlib import Path

GENES = ["CD3D", "LYZ", "NKG7"]


@pytest.fixture(scope="module")
def embedded() -> ad.AnnData:
    adata = scfm.datasets.pbmc68k()[:60].copy()
    scfm.tl.embed(adata, "scfm-mini", pooling="gene")
    scfm.tl.embed(adata, "scfm-mini", pooling="gene", groupby="phase", key_added="by_phase")
    return adata


@pytest.fixture(scope="module")
def states(embedded: ad.AnnData) -> ad.AnnData:
    found = scfm.tl.gene_embeddings(embedded, "scfm-mini", genes=GENES)
    assert isinstance(found, ad.AnnData)
    return found


def test_genes_as_rows(embedded: ad.AnnData) -> None:
    values = embedded.varm["X_scfm_mini"]
    known = ~np.isnan(values).any(axis=1)
    assert 0 < known.sum() < embedded.n_vars
    genes = scfm.get.gene_adata(embedded, "X_scfm_mini")
    np.testing.assert_array_equal(genes.X, values[known])
    pd.testing.assert_frame_equal(genes.obs, embedded.var[known])
    assert genes.uns["scfm_mini"]["params"]["pooling"] == "gene"


def test_genes_of_a_group_after_a_file(embedded: ad.AnnData, tmp_path: Path) -> None:
    embedded.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    groups = embedded.obs["phase"].cat.categories.tolist()
    for i, group in enumerate(groups):
        values = embedded.varm["by_phase"][:, i]
        genes = scfm.get.gene_adata(read, "by_phase", group)
        np.testing.assert_array_equal(genes.X, values[~np.isnan(values).any(axis=1)])


def test_scanpy_takes_genes(embedded: ad.AnnData, states: ad.AnnData) -> None:
    import scanpy as sc

    for rows in (scfm.get.gene_adata(embedded, "X_scfm_mini"), states):
        sc.pp.neighbors(rows, use_rep="X")
        sc.tl.leiden(rows, flavor="igraph", n_iterations=2, directed=False)
        sc.tl.umap(rows, maxiter=5)
        assert rows.obsm["X_umap"].shape == (rows.n_obs, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"key": "none"}, KeyError, r"'none' is not in varm; found \['X_scfm_mini', 'by_phase'\]"),
        ({"key": "X_scfm_mini", "group": "S"}, ValueError, "one embedding a gene: leave group out"),
        ({"key": "by_phase"}, ValueError, "embeddings by group: give group="),
        ({"key": "by_phase", "group": "M"}, KeyError, "group='M' is not one of the groups .*'G1'"),
    ],
)
def test_genes_that_are_not_there(
    embedded: ad.AnnData, arguments: dict[str, str], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        scfm.get.gene_adata(embedded, **arguments)


def test_states_of_single_cells(embedded: ad.AnnData, states: ad.AnnData) -> None:
    """As the guide reads them."""
    cell = embedded.obs_names[3]
    expressed = [gene for gene in GENES if embedded[cell, gene].X.sum() > 0]
    one_cell = states[states.obs["cell"] == cell]
    table = one_cell.to_df().set_axis(one_cell.obs["gene"].astype(str))
    assert table.index.tolist() == expressed
    lyz = states[states.obs["gene"] == "LYZ"]
    of_cells = lyz.to_df().set_axis(lyz.obs["cell"].astype(str)).reindex(embedded.obs_names).to_numpy()
    has_lyz = embedded[:, "LYZ"].X.toarray()[:, 0] > 0
    np.testing.assert_array_equal(~np.isnan(of_cells).any(axis=1), has_lyz)
    by_cell = {
        cell: pd.Series(list(states.X[rows]), index=states.obs["gene"].iloc[rows].astype(str))
        for cell, rows in states.obs.groupby("cell", observed=True).indices.items()
    }
    for name in by_cell.keys() & set(embedded.obs_names[has_lyz]):
        np.testing.assert_array_equal(by_cell[name]["LYZ"], of_cells[embedded.obs_names == name][0])
    np.testing.assert_array_equal(np.stack(by_cell[cell].tolist()), table)
    mean = embedded.varm["X_scfm_mini"][embedded.var_names.get_loc("LYZ")]
    close(np.nanmean(of_cells, axis=0), mean)
