"""Verbs on the path of a file: the copy holds what the same call stores in an object, and everything else as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from anndata.tests.helpers import assert_equal

import scfm
from scfm.testing import write_geneformer, write_transcriptformer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*zarr v[23]:UserWarning",  # of anndata about the format it writes by default
    "ignore:Consolidated metadata:UserWarning",
    "ignore:From 0.4:FutureWarning",  # of mudata about its next release
    "ignore:Cannot join columns:UserWarning",
)
N_OBS, N_GENES = 24, 30


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, scfm.model.FoundationModel]:
    folder = tmp_path_factory.mktemp("models")
    geneformer = write_geneformer(folder / "g", n_genes=N_GENES, n_layers=1, hidden_size=8)
    transcriptformer = write_transcriptformer(folder / "t", n_genes=N_GENES, embed_dim=8, gene_width=6, seq_len=29)
    return {"g": scfm.model.load(geneformer), "t": scfm.model.load(transcriptformer)}


def cells() -> ad.AnnData:
    """Counts, some labels, an embedding, and responses to drugs."""
    adata = scfm.datasets.synthetic(N_OBS, N_GENES, genes_per_cell=8)
    adata.var_names = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]
    rng = np.random.default_rng(1)
    adata.obs["type"] = pd.Categorical(["a", "b", "c"] * (N_OBS // 3))
    adata.obs["half"] = pd.Categorical(["x", "y"] * (N_OBS // 2))
    adata.obs["label"] = pd.Categorical(["T", "B", "T", "B"] * 2 + [None] * (N_OBS - 8))
    adata.obsm["X_own"] = rng.normal(size=(N_OBS, 3))
    adata.obsm["ic50"] = pd.DataFrame(rng.normal(size=(N_OBS, 2)), adata.obs_names, ["drug A", "drug B"])
    adata.uns["note"] = "mine"
    return adata


VERBS: dict[str, tuple[Callable[..., Any], str, dict[str, Any]]] = {
    "embed": (scfm.tl.embed, "g", {}),
    "embed genes": (scfm.tl.embed, "g", {"pooling": "gene", "groupby": "type", "key_added": "genes"}),
    "score": (scfm.tl.score, "t", {"clip_counts": 9}),
    "predict genes": (scfm.tl.predict_genes, "g", {"mask": 0.5, "n_top": 3}),
    "gene context": (scfm.tl.gene_context, "g", {"groupby": "half"}),
    "attention": (scfm.tl.attention, "g", {"groupby": "half", "n_top": 3}),
    "marker genes": (scfm.tl.marker_genes, "g", {"groupby": "half", "n_cells": 5}),
    "perturb": (
        scfm.tl.perturb,
        "g",
        {
            "genes": ["ENSG00000000001", ("ENSG00000000002", "ENSG00000000003")],
            "kind": "overexpress",
            "states_key": "half",
            "start": "x",
            "goal": "y",
            "n_cells": 4,
            "gene_effects": True,
            "embeddings": True,
        },
    ),
    "annotate": (scfm.tl.annotate, "", {"labels_key": "label", "use_rep": "X_own", "n_neighbors": 3, "reject": 0.2}),
    "drug response": (
        scfm.tl.drug_response,
        "",
        {"use_rep": "X_own", "groupby": None, "split": "line", "test_share": 0.5},
    ),
}
SUFFIXES = ("h5ad", "zarr", "h5mu")


def write(adata: ad.AnnData, path: Path) -> Path:
    if path.suffix == ".h5mu":
        md.MuData({"rna": adata}).write_h5mu(path)
    else:
        adata.write_h5ad(path) if path.suffix == ".h5ad" else adata.write_zarr(path)
    return path


def read(path: Path) -> ad.AnnData:
    if path.suffix == ".h5mu":
        return md.read_h5mu(path)["rna"]
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", VERBS)
def test_a_copy_holds_what_an_object_would(
    kind: str, suffix: str, models: dict[str, scfm.model.FoundationModel], tmp_path: Path
) -> None:
    verb, model, arguments = VERBS[kind]
    if kind == "drug response" and suffix == "h5mu":
        pytest.skip("cell lines have no modalities")
    given = [models[model]] if model else []
    source, out = write(cells(), tmp_path / f"in.{suffix}"), tmp_path / f"out.{suffix}"
    more = arguments | ({"modality": "rna"} if suffix == "h5mu" else {})
    before = read(source)
    assert verb(source, *given, out=str(out), **more) == out
    expected = cells()
    verb(expected, *given, **arguments)
    assert_equal(read(out), read(write(expected, tmp_path / f"expected.{suffix}")))
    assert_equal(read(source), before)
    with pytest.raises(FileExistsError, match="out.* exists already; choose another name, or pass overwrite=True"):
        verb(source, *given, out=out, **more)
    verb(source, *given, out=source, overwrite=True, **more)
    verb(source, *given, out=source, overwrite=True, **more)  # its own result may be replaced
    assert_equal(read(source), read(out))


@pytest.mark.parametrize("kind", VERBS)
def test_where_results_cannot_go(kind: str, models: dict[str, scfm.model.FoundationModel], tmp_path: Path) -> None:
    verb, model, arguments = VERBS[kind]
    given = [models[model]] if model else []
    adata = cells()
    source = write(adata, tmp_path / "in.h5ad")
    name = verb.__name__
    with pytest.raises(ValueError, match=rf"tl.{name} does not change the file .*in.h5ad. Give out="):
        verb(source, *given, **arguments)
    with pytest.raises(ValueError, match="of a file, out= is the copy already. Leave copy= out"):
        verb(source, *given, out=tmp_path / "out.h5ad", copy=True, **arguments)
    with pytest.raises(
        ValueError, match=rf"out= is for the path of a file. tl.{name} stores .* AnnData: leave out= out"
    ):
        verb(adata, *given, out=tmp_path / "out.h5ad", **arguments)
    with pytest.raises(ValueError, match="overwrite= is for the path of a file"):
        verb(adata, *given, overwrite=True, **arguments)
    with pytest.raises(ValueError, match="Cannot make out.zarr of in.h5ad"):
        verb(source, *given, out=tmp_path / "out.zarr", **arguments)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none.h5ad"):
        verb(tmp_path / "none.h5ad", *given, out=tmp_path / "out.h5ad", **arguments)
    with pytest.raises(FileNotFoundError, match="Patterns and addresses are for scfm.tl.embed_store"):
        verb(tmp_path / "*.h5ad", *given, out=tmp_path / "out.h5ad", **arguments)
    with pytest.raises(TypeError, match=r"must be .*got 1"):
        verb(1, *given, **arguments)
    assert list(tmp_path.iterdir()) == [source]


def test_what_is_something_else_is_not_overwritten(
    models: dict[str, scfm.model.FoundationModel], tmp_path: Path
) -> None:
    adata = cells()
    adata.uns["marker_genes"] = {"mine": 1}
    adata.layers["mine"] = adata.X
    source = write(adata, tmp_path / "in.h5ad")
    with pytest.raises(ValueError, match=r"would overwrite uns\['marker_genes'\]"):
        scfm.tl.marker_genes(source, models["g"], out=tmp_path / "out.h5ad")
    with pytest.raises(ValueError, match=r"would overwrite layers\['mine'\]"):
        scfm.tl.marker_genes(source, models["g"], out=tmp_path / "out.h5ad", key_added="mine")
    assert list(tmp_path.iterdir()) == [source]


def test_genes_of_raw_in_the_order_of_var(models: dict[str, scfm.model.FoundationModel], tmp_path: Path) -> None:
    adata = cells()
    adata.raw = adata
    adata = adata[:, ::-1][:, :20].copy()
    source = write(adata, tmp_path / "in.h5ad")
    out = tmp_path / "out.h5ad"
    for verb, slot, name, more in (
        (scfm.tl.embed, "varm", "X_geneformer", {"pooling": "gene"}),
        (scfm.tl.marker_genes, "layers", "marker_genes", {}),
    ):
        verb(source, models["g"], out=out, overwrite=True, use_raw=True, **more)
        verb(adata, models["g"], use_raw=True, **more)
        found, expected = (getattr(one, slot)[name] for one in (ad.read_h5ad(out), adata))
        assert_equal(found, expected)


@pytest.mark.parametrize("kind", ["h5ad", "h5mu"])
def test_annotate_with_files_of_two_kinds(kind: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"labels_key": "label", "use_rep": "X_own", "n_neighbors": 3}
    source = write(cells(), tmp_path / "in.h5ad")
    reference = write(cells(), tmp_path / f"reference.{kind}")
    modality = "rna" if kind == "h5mu" else None
    scfm.tl.annotate(source, reference, out=tmp_path / "out.h5ad", modality=modality, **how)
    expected = cells()
    scfm.tl.annotate(expected, reference, modality=modality, **how)
    other = cells()
    scfm.tl.annotate(other, cells(), **how)
    for found in (ad.read_h5ad(tmp_path / "out.h5ad"), other):
        pd.testing.assert_frame_equal(found.obs, expected.obs)
