"""Compare scfm-mini with random weights of the same architecture and with PCA, on cells it was not trained on.

The cells are :func:`scfm.datasets.pbmc68k`, the labels its ``bulk_labels``. Prints a Markdown table::

    python scripts/evaluate_mini.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scanpy as sc
import torch
from safetensors.torch import save_file
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import scfm
from scfm.nn import BertConfig, BertEncoder, MaskedLMHead
from scfm.nn.bert import encoder_targets
from scfm.nn.heads import head_targets
from scfm.weights.tensors import sha256

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

N_RANDOM = 5
FOLD_SEEDS = range(10)
KMEANS_SEEDS = range(5)


def random_model(name: str, seed: int, folder: Path) -> Path:
    """Write a model like ``name`` with freshly drawn weights; give its folder."""
    model = scfm.model.load(name)
    config = BertConfig(**model.card.architecture)
    torch.manual_seed(seed)
    encoder, head = BertEncoder(config), MaskedLMHead(config)
    tensors = {**encoder_targets(encoder), **head_targets(head), "cls.predictions.bias": head.bias}
    folder.mkdir()
    weights = folder / "model.safetensors"
    save_file({key: tensor.detach().clone() for key, tensor in tensors.items()}, weights)
    model.vocabulary.save(folder)
    model.card.with_(id=f"random-{seed}", weights_sha256=sha256(weights), vocabulary_sha256=None).write(folder)
    return folder


def pca(adata: AnnData, *, scale: bool) -> NDArray[np.float32]:
    """50 principal components of log-normalised counts."""
    normalised = adata.copy()
    sc.pp.normalize_total(normalised, target_sum=10_000)
    sc.pp.log1p(normalised)
    if scale:
        sc.pp.scale(normalised, max_value=10)
    sc.pp.pca(normalised, n_comps=50, random_state=0)
    return normalised.obsm["X_pca"]


def measure(embedding: NDArray[np.float32], labels: NDArray[np.str_]) -> dict[str, float]:
    """Score an embedding: kNN accuracy over several foldings, ARI of k-means, silhouette of the labels."""
    classifier = KNeighborsClassifier(n_neighbors=15)
    accuracy = [
        cross_val_score(
            classifier, embedding, labels, cv=StratifiedKFold(n_splits=5, shuffle=True, random_state=seed)
        ).mean()
        for seed in FOLD_SEEDS
    ]
    n_labels = len(np.unique(labels))
    ari = [
        adjusted_rand_score(labels, KMeans(n_labels, n_init=10, random_state=seed).fit_predict(embedding))
        for seed in KMEANS_SEEDS
    ]
    return {
        "kNN accuracy": float(np.mean(accuracy)),
        "lowest": float(np.min(accuracy)),
        "highest": float(np.max(accuracy)),
        "ARI": float(np.mean(ari)),
        "ASW": float(silhouette_score(embedding, labels)),
    }


def main() -> None:
    """Embed, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scfm-mini", help="id of the model, or its folder")
    model = parser.parse_args().model
    adata = scfm.datasets.pbmc68k()
    labels = adata.obs["bulk_labels"].to_numpy(str)
    rows = {"scfm-mini": measure(scfm.model.load(model).embed(adata), labels)}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(N_RANDOM):
            path = random_model(model, seed, Path(folder) / str(seed))
            rows[f"random weights, seed {seed}"] = measure(scfm.model.load(path).embed(adata), labels)
    rows["PCA, log-normalised"] = measure(pca(adata, scale=False), labels)
    rows["PCA, log-normalised and scaled"] = measure(pca(adata, scale=True), labels)
    columns = list(rows["scfm-mini"])
    print(f"| embedding | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{values[column]:.3f}' for column in columns)} |")


if __name__ == "__main__":
    main()
