"""From counts to a picture with scanpy, and to files and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata as md
import numpy as np
import pytest

import scfm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*zarr v[23]:UserWarning",
    "ignore:Consolidated metadata:UserWarning",
    "ignore:From 0.4:FutureWarning",
    "ignore:Cannot join columns:UserWarning",
)

N_OBS = 60


@pytest.fixture(scope="session")
def model() -> scfm.model.FoundationModel:
    return scfm.model.load("scfm-mini")


@pytest.fixture(scope="session")
def small() -> ad.AnnData:
    return scfm.datasets.pbmc68k()[:N_OBS].copy()


@pytest.fixture
def adata(small: ad.AnnData, model: scfm.model.FoundationModel) -> ad.AnnData:
    """Embedded cells and genes."""
    adata = small.copy()
    scfm.tl.embed(adata, model)
    scfm.tl.embed(adata, model, pooling="gene", key_added="genes")
    return adata


@pytest.mark.filterwarnings("ignore")  # of scanpy, umap and matplotlib about each other
def test_from_counts_to_a_picture(small: ad.AnnData, model: scfm.model.FoundationModel, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt
    import scanpy as sc

    adata = small.copy()
    scfm.tl.embed(adata, model="scfm-mini")
    assert adata.obsm["X_scfm_mini"].shape == (N_OBS, model.n_features)
    sc.pp.neighbors(adata, use_rep="X_scfm_mini", n_neighbors=10)
    sc.tl.umap(adata, maxiter=20)
    sc.pl.umap(adata, color="bulk_labels", show=False)
    plt.savefig(tmp_path / "umap.png")
    plt.close("all")
    assert (tmp_path / "umap.png").stat().st_size > 1000
    assert np.isfinite(adata.obsm["X_umap"]).all()
    assert adata.uns["neighbors"]["params"]["use_rep"] == "X_scfm_mini"
    adata.write_h5ad(tmp_path / "a.h5ad")


def plain(value: Any) -> Any:
    """Arrays and numpy scalars of a file as the lists and numbers they were."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def write_zarr(version: int) -> Callable[[ad.AnnData, Path], None]:
    def write(adata: ad.AnnData, path: Path) -> None:
        with ad.settings.override(zarr_write_format=version):
            adata.write_zarr(path)

    return write


FORMATS: dict[str, tuple[Callable[[ad.AnnData, Path], Any], Callable[[Path], ad.AnnData]]] = {
    "h5ad": (ad.AnnData.write_h5ad, ad.read_h5ad),
    "zarr v2": (write_zarr(2), ad.read_zarr),
    "zarr v3": (write_zarr(3), ad.read_zarr),
    "h5mu": (lambda adata, path: md.MuData({"rna": adata}).write_h5mu(path), lambda path: md.read_h5mu(path)["rna"]),
    "mudata zarr": (
        lambda adata, path: md.MuData({"rna": adata}).write_zarr(path),
        lambda path: md.read_zarr(path)["rna"],
    ),
}


@pytest.mark.parametrize("unknown", [0, 3], ids=["all genes known", "unknown genes"])
@pytest.mark.parametrize("kind", FORMATS)
def test_results_survive_a_file(
    kind: str, unknown: int, small: ad.AnnData, model: scfm.model.FoundationModel, tmp_path: Path
) -> None:
    known = scfm.genes.align(small.var, model.vocabulary).tokens >= 0
    columns = np.concatenate([np.flatnonzero(known), np.flatnonzero(~known)[:unknown]])
    adata = small[:, columns].copy()
    scfm.tl.embed(adata, model)
    scfm.tl.embed(adata, model, pooling="gene", key_added="genes")
    write, read = FORMATS[kind]
    write(adata, tmp_path / "a")
    found = read(tmp_path / "a")
    np.testing.assert_array_equal(found.obsm["X_scfm_mini"], adata.obsm["X_scfm_mini"])
    np.testing.assert_array_equal(found.varm["genes"], adata.varm["genes"])
    assert found.obsm["X_scfm_mini"].dtype == found.varm["genes"].dtype == np.float32
    for key in ("scfm_mini", "genes"):
        before, after = adata.uns[key]["params"], found.uns[key]["params"]
        assert plain(after) == before
        assert after["revision"] is None
        assert after["compat"] is None
        assert after["genes"]["unmatched"] == unknown


def test_params_say_what_was_done(adata: ad.AnnData, model: scfm.model.FoundationModel) -> None:
    params, genes = adata.uns["scfm_mini"]["params"], adata.uns["genes"]["params"]
    assert (params["model"], params["family"], params["pooling"], genes["pooling"]) == (
        "scfm-mini",
        "scfm_mini",
        model.card.pooling,
        "gene",
    )
    assert params["weights_sha256"] == model.card.weights_sha256
    assert (params["max_tokens"], params["hidden_layer"]) == (model.card.max_tokens, model.card.hidden_layer)
    assert params["genes"]["matched"] + params["genes"]["unmatched"] == adata.n_vars
    assert params["n_cells"] == N_OBS
    assert set(params["versions"]) == {"scfm", "anndata", "numpy", "torch"}
    repeated = model.embed(
        adata, **{name: params[name] for name in ("pooling", "hidden_layer", "max_tokens", "compat", "device", "dtype")}
    )
    np.testing.assert_array_equal(repeated, adata.obsm["X_scfm_mini"])


def test_anndata_accessor(small: ad.AnnData, adata: ad.AnnData) -> None:
    other = small.copy()
    assert other.scfm.embed("scfm-mini") is None
    np.testing.assert_array_equal(other.obsm["X_scfm_mini"], adata.obsm["X_scfm_mini"])
    copied = other.scfm.embed("scfm-mini", key_added="z", copy=True)
    assert "z" in copied.obsm
    assert "z" not in other.obsm
    assert other.scfm.match_genes("scfm-mini") == scfm.pp.match_genes(small, "scfm-mini")


def test_mudata_accessor(small: ad.AnnData, adata: ad.AnnData, tmp_path: Path) -> None:
    other = ad.AnnData(np.ones((N_OBS, 2), np.float32), obs=small.obs[[]])
    mdata = md.MuData({"rna": small.copy(), "adt": other})
    assert mdata.scfm.embed("scfm-mini", modality="rna") is None
    np.testing.assert_array_equal(mdata["rna"].obsm["X_scfm_mini"], adata.obsm["X_scfm_mini"])
    assert list(mdata["adt"].obsm) == []
    assert "X_scfm_mini" not in mdata.obsm
    mdata.write_h5mu(tmp_path / "a.h5mu")
    found = md.read_h5mu(tmp_path / "a.h5mu")["rna"]
    np.testing.assert_array_equal(found.obsm["X_scfm_mini"], adata.obsm["X_scfm_mini"])
    assert (
        plain(found.uns["scfm_mini"]["params"]["genes"]["matched"])
        == mdata.scfm.match_genes("scfm-mini", modality="rna").matched
    )


def test_backed_objects_take_results(small: ad.AnnData, adata: ad.AnnData, tmp_path: Path) -> None:
    small.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    scfm.tl.embed(backed, "scfm-mini")
    np.testing.assert_array_equal(backed.obsm["X_scfm_mini"], adata.obsm["X_scfm_mini"])
    assert backed.isbacked
    backed.file.close()
    assert list(ad.read_h5ad(tmp_path / "a.h5ad").obsm) == list(small.obsm)


def test_results_concatenate(adata: ad.AnnData, model: scfm.model.FoundationModel) -> None:
    both = ad.concat([adata, adata], index_unique="-", uns_merge="same")
    assert both.obsm["X_scfm_mini"].shape == (2 * N_OBS, model.n_features)
    assert both.uns["scfm_mini"]["params"]["weights_sha256"] == adata.uns["scfm_mini"]["params"]["weights_sha256"]
