"""Annotate each batch of a data set from the others, and see whether a type that is held out is noticed.

Prints Markdown tables of accuracy, of the AUROC of novelty, and of what ``reject=0.05`` rejects, for each model and
for a PCA of 50 components (log-normalised counts, all genes, fitted on the reference alone)::

    python scripts/evaluate_annotation.py --data cell_lines.h5ad --model scfm-mini mini-without-this-file
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import scanpy as sc
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

import scfm

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

METHODS = {
    "kNN, cosine": {"method": "knn", "metric": "cosine"},
    "kNN, whitened": {"method": "knn"},
    "logistic": {"method": "logistic"},
    "linear probe": {"method": "linear_probe"},
}
PCA_NAME = "PCA"
REJECT = 0.05


class Data:
    """Cells with labels, batches, and embeddings in ``obsm``."""

    def __init__(self, adata: AnnData, labels: str, batches: str, models: list[str]) -> None:
        self.adata, self.labels_key, self.batch_key = adata, labels, batches
        self.labels, self.batches = adata.obs[labels].to_numpy(str), adata.obs[batches].to_numpy(str)
        self.names = [Path(model).name for model in models]
        for name, model in zip(self.names, models, strict=True):
            adata.obsm[name] = scfm.model.load(model).embed(adata)
        normalised = adata.copy()
        sc.pp.normalize_total(normalised, target_sum=10_000)
        sc.pp.log1p(normalised)
        self._normalised = normalised.X

    def split(self, batch: str, name: str, without: str | None = None) -> tuple[AnnData, AnnData]:
        """Cells of a batch, and those of all others without one label, as frames around an embedding."""
        asked, known = self.batches == batch, (self.batches != batch) & (self.labels != without)
        if name == PCA_NAME:
            fitted = PCA(50, svd_solver="arpack", random_state=0).fit(self._normalised[known])
            values = fitted.transform(self._normalised).astype(np.float32)
        else:
            values = self.adata.obsm[name]
        query, reference = (
            ad.AnnData(obs=self.adata.obs[rows][[self.labels_key, self.batch_key]], obsm={name: values[rows]})
            for rows in (asked, known)
        )
        return query, reference

    def annotate(self, query: AnnData, reference: AnnData, name: str, **arguments: object) -> AnnData:
        """Annotate, and return the obs of the query."""
        scfm.tl.annotate(query, reference, labels_key=self.labels_key, use_rep=name, **arguments)
        return query.obs

    def accuracy(self, name: str, **arguments: object) -> list[float]:
        """Share of right labels of each batch, annotated from the others."""
        found = []
        for batch in np.unique(self.batches):
            obs = self.annotate(*self.split(batch, name), name, **arguments)
            found.append(float(np.mean(obs["annotation"].to_numpy(str) == obs[self.labels_key].to_numpy(str))))
        return found

    def novelty(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Each label held out of the reference, each batch annotated.

        Returns
        -------
        AUROC of the held-out label by novelty, ``(n_labels, n_batches)``, NaN where a batch has no such cell; and the
        share of cells rejected, of known labels and of the held-out one, without and with ``batch_key``,
        ``(n_labels, n_batches, 2, 2)``.
        """
        kinds, batches = np.unique(self.labels), np.unique(self.batches)
        auroc = np.full((len(kinds), len(batches)), np.nan)
        rejected = np.full((*auroc.shape, 2, 2), np.nan)
        for i, kind in enumerate(kinds):
            for j, batch in enumerate(batches):
                held = self.labels[self.batches == batch] == kind
                if not held.any():
                    continue
                for k, batch_key in enumerate((None, self.batch_key)):
                    query, reference = self.split(batch, name, kind)
                    obs = self.annotate(query, reference, name, reject=REJECT, batch_key=batch_key)
                    unknown = (obs["annotation"] == "unknown").to_numpy()
                    rejected[i, j, k] = unknown[~held].mean(), unknown[held].mean()
                auroc[i, j] = roc_auc_score(held, obs["annotation_novelty"])
        return auroc, rejected


def table(columns: list[str], rows: dict[str, list[float]]) -> None:
    """Print a Markdown table."""
    print(f"\n| {' | '.join(['', *columns])} |\n|{' --- |' * (len(columns) + 1)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join('' if np.isnan(value) else f'{value:.3f}' for value in values)} |")


def main() -> None:
    """Embed, annotate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=".h5ad file with counts in X")
    parser.add_argument("--model", nargs="+", default=["scfm-mini"], help="ids of models, or their folders")
    parser.add_argument("--labels", default="cell_line", help="column of obs with the labels")
    parser.add_argument("--batches", default="batch", help="column of obs with the batches")
    arguments = parser.parse_args()
    data = Data(ad.read_h5ad(arguments.data), arguments.labels, arguments.batches, arguments.model)
    batches, kinds = list(np.unique(data.batches)), list(np.unique(data.labels))
    accuracy = {
        f"{name}, {text}": data.accuracy(name, **how)
        for name in [*data.names, PCA_NAME]
        for text, how in METHODS.items()
    }
    table([*batches, "mean"], {name: [*values, float(np.mean(values))] for name, values in accuracy.items()})
    rejection = {}
    for name in [*data.names, PCA_NAME]:
        auroc, rejected = data.novelty(name)
        print(f"\nAUROC of novelty, {name}: mean {np.nanmean(auroc):.3f}, lowest {np.nanmin(auroc):.3f}")
        table([*batches, "mean"], {kinds[i]: [*row, np.nanmean(row)] for i, row in enumerate(auroc)})
        for k, text in enumerate(("", ", batch_key")):
            rejection[f"{name}{text}"] = list(np.nanmean(rejected[:, :, k], axis=(0, 1)))
    table(["known cells rejected", "held-out cells rejected"], rejection)


if __name__ == "__main__":
    main()
