"""The table by which models are judged: each column is what the same steps give by hand."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import scfm
from scfm.testing import write_geneformer, write_transcriptformer
from scfm.tl._evaluate import _with_random_weights

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blood, once with labels that are missing, and once by Ensembl ids of the model in a layer."""
    folder = tmp_path_factory.mktemp("files")
    adata = scfm.datasets.pbmc68k()
    labels = adata.obs["bulk_labels"].astype(str)
    labels[:30] = "unknown"
    adata.obs["cell_type"] = pd.Categorical(labels.where(np.arange(700) >= 40))
    adata[:150].write_h5ad(folder / "one.h5ad")
    adata[150:250].write_h5ad(folder / "two.h5ad")
    adata[400:600].write_h5ad(folder / "corpus.h5ad")
    return folder


def test_columns(files: Path) -> None:
    paths, corpus = [files / "one.h5ad", files / "two.h5ad"], files / "corpus.h5ad"
    table = scfm.tl.evaluate(paths, ["scfm-mini"], corpus=corpus)
    assert table.index.tolist() == ["one", "two", "mean"]
    assert table.columns.tolist() == ["scfm-mini", "scfm-mini, random weights", "linear projection", "PCA"]
    np.testing.assert_allclose(table.loc["mean"], table.iloc[:2].mean())
    model = scfm.model.load("scfm-mini")
    adata = sc.read_h5ad(files / "one.h5ad")[40:]
    sizes = adata.obs["cell_type"].value_counts()
    adata = adata[adata.obs["cell_type"].isin(sizes.index[sizes >= 5])].copy()
    labels = adata.obs["cell_type"]
    projection = scfm.train.linear_projection(corpus, model.vocabulary)
    assert table.loc["one", "scfm-mini"] == scfm.metrics.knn_accuracy(model.embed(adata), labels)
    assert table.loc["one", "linear projection"] == scfm.metrics.knn_accuracy(projection.embed(adata), labels)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, random_state=0)
    assert table.loc["one", "PCA"] == pytest.approx(scfm.metrics.knn_accuracy(adata.obsm["X_pca"], labels), abs=0.02)
    assert table.loc["mean", "scfm-mini, random weights"] < table.loc["mean", "scfm-mini"]


def test_files_of_one_name(files: Path, tmp_path: Path) -> None:
    copies = [tmp_path / part / "cells.h5ad" for part in "ab"]
    for source, copy in zip(("one.h5ad", "two.h5ad"), copies, strict=True):
        copy.parent.mkdir()
        shutil.copy(files / source, copy)
    table = scfm.tl.evaluate(copies, "scfm-mini", random_weights=False)
    assert table.index.tolist() == [*map(str, copies), "mean"]
    with pytest.raises(ValueError, match="models holds several called scfm-mini"):
        scfm.tl.evaluate(copies, ["scfm-mini", scfm.model.load("scfm-mini")])


def test_random_weights_depend_on_the_seed_alone() -> None:
    mini, adata = scfm.model.load("scfm-mini"), scfm.datasets.pbmc68k()[:20]
    trained, first, again, other = (
        model.embed(adata) for model in (mini, *(_with_random_weights(mini, seed) for seed in (0, 0, 1)))
    )
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, atol=0.1)
    np.testing.assert_array_equal(mini.embed(adata), trained)


def test_random_weights_keep_the_vectors_of_proteins(tmp_path: Path) -> None:
    model = scfm.model.load(write_transcriptformer(tmp_path / "tf", n_genes=60), family="transcriptformer")
    adata = scfm.datasets.synthetic(9, 60, genes_per_cell=5)
    adata.var_names = model.vocabulary.genes
    new = _with_random_weights(model, 0)
    assert new.embed(adata).std(axis=0).min() > 0
    name = "gene_embeddings.embedding.weight"
    np.testing.assert_array_equal(new.tensors[name][:], model.tensors[name][:])


def test_models_that_cannot_be_trained_have_no_random_weights(files: Path, tmp_path: Path) -> None:
    folder = write_transcriptformer(tmp_path / "tf", n_genes=60)
    model = scfm.model.load(folder, family="esm2ce")
    assert not model.implements("published_tensors")
    adata = scfm.datasets.synthetic(60, 60, genes_per_cell=5)
    adata.var_names = model.vocabulary.genes
    adata.obs["kind"] = ["a", "b"] * 30
    adata.write_h5ad(tmp_path / "cells.h5ad")
    table = scfm.tl.evaluate(tmp_path / "cells.h5ad", model, labels_key="kind")
    assert table.columns.tolist() == [model.card.id, "PCA"]
    ranked = write_geneformer(tmp_path / "gf", n_genes=60)
    without = scfm.tl.evaluate(tmp_path / "cells.h5ad", ranked, labels_key="kind", random_weights=False)
    assert without.columns.tolist() == ["gf", "PCA"]


def test_what_does_not_fit(files: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"one.h5ad.*labels_key='kind' is not a column of obs; found.*cell_type"):
        scfm.tl.evaluate(files / "one.h5ad", "scfm-mini", labels_key="kind")
    with pytest.raises(ValueError, match="models is empty"):
        scfm.tl.evaluate(files / "one.h5ad", [])
    adata = scfm.datasets.pbmc68k()[:20].copy()
    adata.obs["cell_type"] = "T cell"
    adata.write_h5ad(tmp_path / "alike.h5ad")
    with pytest.raises(ValueError, match=r"alike.h5ad.*Fewer than two types in labels have 5 cells or more"):
        scfm.tl.evaluate(tmp_path / "alike.h5ad", "scfm-mini")
