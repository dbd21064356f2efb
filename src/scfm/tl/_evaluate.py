"""How well models tell cell types apart, beside random weights, a linear projection and PCA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scfm._checks import typed
from scfm._docs import with_parameters
from scfm._text import some
from scfm.metrics import knn_accuracy
from scfm.metrics.knn import scorable
from scfm.model import FoundationModel, load
from scfm.read import open_counts, paths_of
from scfm.read.errors import of_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from scfm.run.device import Device

__all__ = ["evaluate"]

UNLABELLED = ("unknown", "nan", "")
N_COMPONENTS = 50


@typed
@with_parameters
def evaluate(
    files: str | Path | Sequence[str | Path],
    models: str | Path | FoundationModel | Sequence[str | Path | FoundationModel],
    *,
    labels_key: str = "cell_type",
    corpus: str | Path | Sequence[str | Path] | None = None,
    random_weights: bool = True,
    layer: str | None = None,
    gene_key: str | None = None,
    device: Device | Sequence[Device] | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Score models by the accuracy of nearest neighbours on labelled files, beside what needs no training.

    The measure is :func:`scfm.metrics.knn_accuracy` with its defaults, for each file on its own. A model that tells types
    no better apart than a linear method on the same cells has learned nothing that counts here.

    Parameters
    ----------
    files
        Files with counts and labels, patterns such as ``"held_out/*.h5ad"``, or stores.
    models
        Ids, folders or loaded models.
    labels_key
        Column of ``obs`` with the cell types. Cells without one, or with the type ``"unknown"``, and types with fewer than
        five cells are left out.
    corpus
        Files on which the linear projection is made (:func:`scfm.train.linear_projection`), over the genes of the first
        model: those that the model was trained on, and none of ``files``. Without them that column is left out.
    random_weights
        Score each model with new weights, too, where its family can be trained.
    layer
        Layer that holds the counts.
    gene_key
        Column of ``var`` with gene ids or symbols, as in :func:`scfm.tl.embed`.
    %(device)s
    %(dtype)s
    seed
        Seed of folds, random weights and projection.

    Returns
    -------
    A row for each file, by its name without suffix, and their mean. Columns: each model by its id; the same with
    ``", random weights"``; ``"linear projection"``; and ``"PCA"``, 50 components of log-normalised counts, fitted to the
    cells that are scored.

    Raises
    ------
    KeyError
        If a file has no column ``labels_key``.
    ValueError
        If two models have one name, fewer than two types of a file have five cells, no gene of a file is known to a model, or a cell has none.
    TypeError, OSError
        If a file or a model cannot be read.

    Examples
    --------
    >>> import scfm, tempfile
    >>> path = f"{tempfile.mkdtemp()}/blood.h5ad"
    >>> scfm.datasets.pbmc68k()[:200].write_h5ad(path)
    >>> table = scfm.tl.evaluate(path, "scfm-mini", labels_key="bulk_labels")
    >>> table.index.tolist(), table.columns.tolist()
    (['blood', 'mean'], ['scfm-mini', 'scfm-mini, random weights', 'PCA'])
    """
    from scfm.train.projection import linear_projection

    listed = [models] if isinstance(models, str | Path | FoundationModel) else list(models)
    if not listed:
        msg = "models is empty: name the models to score."
        raise ValueError(msg)
    loaded = [model if isinstance(model, FoundationModel) else load(model) for model in listed]
    ids = [model.card.id for model in loaded]
    if len(set(ids)) < len(ids):
        msg = f"models holds several called {some(sorted({one for one in ids if ids.count(one) > 1}))}; give them names of their own."
        raise ValueError(msg)
    paths = paths_of(files)
    cells = [_labelled(path, labels_key, layer) for path in paths]
    embeddings: dict[str, Any] = {}
    for model in loaded:
        embeddings[model.card.id] = model
        if random_weights and model.implements("published_tensors"):
            embeddings[f"{model.card.id}, random weights"] = _with_random_weights(model, seed)
    options = {"gene_key": gene_key, "device": device, "dtype": dtype}
    table: dict[str, list[float]] = {
        name: [knn_accuracy(model.embed(adata, **options), labels, seed=seed) for adata, labels in cells]
        for name, model in embeddings.items()
    }
    if corpus is not None:
        projection = linear_projection(corpus, loaded[0].vocabulary, layer=layer, gene_key=gene_key, seed=seed)
        table["linear projection"] = [
            knn_accuracy(projection.embed(adata, gene_key=gene_key), labels, seed=seed) for adata, labels in cells
        ]
    table["PCA"] = [knn_accuracy(_components(adata), labels, seed=seed) for adata, labels in cells]
    scores = pd.DataFrame(table, index=pd.Index(_called(paths), name="file"))
    return pd.concat([scores, scores.mean().rename("mean").to_frame().T.rename_axis(index="file")])


def _called(paths: Sequence[str | Path]) -> list[str]:
    """Names of files without suffix, or the paths of those that share one."""
    names = [Path(str(path)).stem for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _labelled(path: str | Path, labels_key: str, layer: str | None) -> tuple[AnnData, NDArray[np.object_]]:
    """The cells of a file that are scored, in memory, and their labels."""
    with of_file(str(path)), open_counts(path, layer=layer) as source:
        if labels_key not in source.obs_columns:
            msg = f"labels_key={labels_key!r} is not a column of obs; found {source.obs_columns}."
            raise KeyError(msg)
        column = source.column(labels_key)
        labels = column.astype(object).where(column.notna() & ~column.astype(str).isin(UNLABELLED), None).to_numpy()
        kept = scorable(labels)
        parts = [
            sparse.csr_matrix((block.data, block.indices, block.indptr), shape=(block.n_cells, source.n_vars))[
                kept[block.row0 : block.row0 + block.n_cells]
            ]
            for block in source.blocks()
        ]
        return AnnData(sparse.csr_matrix(sparse.vstack(parts)), var=source.var.copy()), labels[kept]


def _with_random_weights(model: FoundationModel, seed: int) -> FoundationModel:
    """The same model before any training; vectors of proteins, which it is given, stay."""
    import torch

    from scfm.nn.gene_rows import GENE_VECTORS

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(model.card, model.vocabulary, {})
        tensors = fresh.published_tensors(fresh.training_network())
    tensors = {
        name: model.tensors[name] if name == GENE_VECTORS else tensor.clone() for name, tensor in tensors.items()
    }
    return type(model)(model.card, model.vocabulary, tensors)


def _components(adata: AnnData) -> NDArray[np.float32]:
    import scanpy as sc

    normalised = AnnData(adata.X.astype(np.float32))
    sc.pp.normalize_total(normalised, target_sum=10_000)
    sc.pp.log1p(normalised)
    sc.pp.pca(normalised, n_comps=min(N_COMPONENTS, *(size - 1 for size in normalised.shape)), random_state=0)
    components: NDArray[np.float32] = normalised.obsm["X_pca"]
    return components
