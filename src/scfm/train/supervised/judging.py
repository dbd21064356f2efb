"""How good predictions are on cells that were not trained on, beside logistic regression on principal components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scfm.metrics import classification_report
from scfm.model.session import CountSession
from scfm.train.baseline import pca_baseline
from scfm.train.supervised.targets import Classes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm.model.session import Session
    from scfm.train.supervised.examples import Examples
    from scfm.train.supervised.predictions import Prediction

__all__ = ["judge"]

MOST = 20_000
"""Cells that the baseline is fitted to, at most."""


def judge(model: Any, session: Session, examples: Examples, *, baseline: bool) -> pd.DataFrame:
    """Figures of each target of a ``CellModel`` on the test cells; a row for it and, of classes, one for the baseline."""
    rows = model.test_indices
    rows = np.empty(0, np.int64) if rows is None else np.asarray(rows)
    if not len(rows):
        msg = "There is no test part: train with train_size and validation_size that add up to less than 1, or name one by split=."
        raise ValueError(msg)
    predictions = model.predictions()
    tables = []
    for name, target in model.targets.items():
        values = examples.values[name]
        tested = rows[target.known(values[rows])]
        if not len(tested):
            continue
        name_of = (lambda one, name=name: one) if len(model.targets) == 1 else (lambda one, name=name: f"{one}: {name}")
        if isinstance(target, Classes):
            tables.append(_of_classes(predictions[name], values, tested).rename(index=name_of))
            if baseline and isinstance(session, CountSession):
                found = _baseline(model, session, target, values, tested)
                tables.append(found.rename(index=name_of))
        else:
            tables.append(_of_numbers(predictions[name], values, tested).rename(index=name_of))
    return pd.concat(tables)


def _of_classes(prediction: Prediction, codes: NDArray[Any], rows: NDArray[np.int64]) -> pd.DataFrame:
    assert isinstance(prediction.target, Classes)
    labels = np.array(prediction.target.labels, dtype=object)
    report = classification_report(
        labels[codes[rows]],
        np.asarray(prediction.labels(), dtype=object)[rows],
        probabilities=np.nan_to_num(prediction.values[rows], nan=1 / len(labels)),  # of a cell without genes
        classes=list(prediction.target.labels),
    )
    return report.to_frame("model")


def _of_numbers(prediction: Prediction, values: NDArray[Any], rows: NDArray[np.int64]) -> pd.DataFrame:
    found, true = prediction.values[rows, 0].astype(float), values[rows]
    said = np.isfinite(found)
    found, true = found[said], true[said]
    errors, spread = np.square(found - true).sum(), np.square(true - true.mean()).sum()
    figures = {
        "r2": 1 - errors / spread if len(set(true)) > 1 else np.nan,
        "pearson": np.corrcoef(found, true)[0, 1] if len(set(true)) > 1 < len(set(found)) else np.nan,
        "mean_absolute_error": np.abs(found - true).mean(),
        "n_cells": len(true),
    }
    return pd.DataFrame([figures], index=["model"])


def _baseline(
    model: Any, session: CountSession, target: Classes, codes: NDArray[Any], tested: NDArray[np.int64]
) -> pd.DataFrame:
    """Logistic regression on principal components of the cells that were trained on."""
    trained = np.asarray(model.train_indices)
    trained = trained[codes[trained] >= 0]
    if len(trained) > MOST:
        trained = np.sort(np.random.default_rng(0).choice(trained, MOST, replace=False))
    rows = np.union1d(trained, tested)
    shares = pca_baseline(
        _counts(session, rows),
        codes[rows],
        np.searchsorted(rows, trained),
        np.searchsorted(rows, tested),
        n_classes=target.n_outputs,
    )
    labels = np.array(target.labels, dtype=object)
    report = classification_report(
        labels[codes[tested]], labels[shares.argmax(axis=1)], probabilities=shares, classes=list(target.labels)
    )
    return report.to_frame("PCA + logistic regression")


def _counts(session: CountSession, rows: NDArray[np.int64]) -> sparse.csr_matrix:
    """Counts of some cells, read block by block."""
    parts, n_genes = [], len(session.source.var)
    for block in session.source.blocks():
        inside = rows[(rows >= block.row0) & (rows < block.row0 + block.n_cells)] - block.row0
        whole = sparse.csr_matrix((block.data, block.indices, block.indptr), shape=(block.n_cells, n_genes))
        parts.append(whole[inside])
    return sparse.vstack(parts).tocsr().astype(np.float32)
