"""Responses of cell lines to drugs, from an embedding of their expression."""

from __future__ import annotations

import logging
import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from scfm._checks import entry_of, typed
from scfm._docs import with_parameters
from scfm._keys import PARAMS, result_keys
from scfm._package import version_of
from scfm._write import Results
from scfm.tl._target import target_of

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["drug_response"]

logger = logging.getLogger("scfm")

FEWEST_LINES = 10
"""With less lines to learn from, a drug is predicted by its mean."""


class _Pairs(NamedTuple):
    """Measurements, drug by drug, and within a drug in the order of the lines."""

    drug: NDArray[np.int64]
    line: NDArray[np.int64]
    group: NDArray[np.int64]
    ic50: NDArray[np.float64]


@typed
@with_parameters
def drug_response(
    data: AnnData | str | Path,
    use_rep: str,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    ic50_key: str = "ic50",
    groupby: str | None = "tcga",
    regressor: Literal["ridge", "boosting"] | Any = "ridge",
    split: Literal["pair", "line"] = "pair",
    test_share: float = 0.05,
    seed: int = 0,
    key_added: str = "drug_response",
    copy: bool = False,
) -> AnnData | Path | None:
    """Predict the response of cell lines to drugs from an embedding, and tell how well it goes.

    The drug response task of scCello with a regression of scikit-learn in the place of DeepCDR (Liu et al. 2020,
    doi:10.1093/bioinformatics/btaa822), the network that upstream trains on the embedding, the structure of the drug,
    mutations and methylation. Measurements and split are upstream's; the correlations are not comparable.

    Parameters
    ----------
    data
        Cell lines, as of :func:`scfm.datasets.drug_response`, or the path of a file of them. The matrix is not read.
    use_rep
        Key of the embedding in ``obsm``. Upstream takes the scaled ``cell_cls`` vectors of scCello.
    %(out)s
    ic50_key
        Key in ``obsm`` of the table of responses, lines x drugs, NaN where there was no measurement.
    groupby
        Column of ``obs`` with the groups that are split each by itself. Lines without a group are left out. ``None``:
        all lines are one group.
    regressor
        ``"ridge"``: for each drug, a ridge regression on the standardised embedding, with the penalty of the smallest
        leave-one-out error. ``"boosting"``: one gradient boosting model of all drugs, of what a measurement differs
        from the mean of its drug; drugs are told apart by this mean. Or a regressor of scikit-learn, which takes the
        place of the ridge regression.
    split
        ``"pair"``: single measurements are held out, as upstream does; the line has been seen with other drugs.
        ``"line"``: lines are held out with all their measurements, as a new patient would be.
    test_share
        Share of each group that is held out, at least.
    seed
        Seed of the split and of boosting.
    key_added
        Key of the results.
    %(copy)s

    Returns
    -------
    ``None``, the changed copy with ``copy=True``, or the path ``out``. Sets these fields:

    ``.obsm[key_added]`` : DataFrame of float64, lines x drugs
        Predictions of the measurements that were held out, else NaN.
    ``.uns[key_added]['pearson']`` : float
        Pearson correlation of predictions and measurements. Most of it tells drugs apart, not lines:
    ``.uns[key_added]['pearson_drug_means']`` : float
        The same for a prediction that knows only the mean of each drug.
    ``.uns[key_added]['pearson_within_drugs']`` : float
        The same after the mean of each drug is taken from both sides: what the embedding tells.
    ``.uns[key_added]['per_drug']`` : DataFrame
        ``n_train``, ``n_test`` and ``pearson`` of each drug, NaN for less than three measurements or a constant.
    ``.uns[key_added]['params']`` : dict
        Everything needed to repeat the run.

    Raises
    ------
    KeyError
        If ``use_rep`` or ``ic50_key`` is not in ``obsm``, or ``groupby`` not in ``obs``.
    TypeError
        If the responses are no DataFrame, or ``regressor`` cannot be fitted.
    ValueError
        If an option is not known, lines with measurements have no embedding, or a side of the split is empty.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scfm
    >>> adata = scfm.datasets.synthetic(60, 100, genes_per_cell=20)
    >>> points = np.random.default_rng(0).normal(size=(60, 3))
    >>> adata.obsm["X_points"] = points
    >>> adata.obsm["ic50"] = pd.DataFrame({"drug A": points[:, 0], "drug B": 5 - points[:, 1]}, adata.obs_names)
    >>> scfm.tl.drug_response(adata, "X_points", groupby=None, split="line", test_share=0.2)
    >>> adata.uns["drug_response"]["per_drug"]["pearson"].round(2).tolist()
    [1.0, 1.0]
    """
    _check_options(regressor, test_share)
    key = result_keys("drug_response", key_added).uns
    if key in (ic50_key, use_rep):
        msg = f"key_added={key!r} would overwrite obsm[{key!r}], which is read; choose another name."
        raise ValueError(msg)
    target = target_of(data, "drug_response", out=out, overwrite=overwrite, copy=copy)
    target.check_free(key, ("obsm", key))
    adata = target.frame((use_rep, ic50_key), ())
    response = entry_of(adata.obsm, ic50_key, "obsm")
    if not isinstance(response, pd.DataFrame):
        msg = f"obsm[{ic50_key!r}] must be a DataFrame, lines x drugs; got {type(response).__name__}."
        raise TypeError(msg)
    pairs = _pairs_of(response, None if groupby is None else entry_of(adata.obs, groupby, "obs"))
    points = _points_of(entry_of(adata.obsm, use_rep, "obsm"), pairs, use_rep)
    test = _held_out(pairs, split, test_share, seed)
    means = _drug_means(pairs, ~test, response.shape[1])
    if isinstance(regressor, str) and regressor == "boosting":
        predicted = _boosted(points, pairs, test, means, seed)
    else:
        predicted = _per_drug(points, pairs, test, means, regressor)

    table = np.full(response.shape, np.nan)
    table[pairs.line[test], pairs.drug[test]] = predicted
    predictions = pd.DataFrame(table, index=adata.obs_names, columns=response.columns)
    params = {
        "use_rep": use_rep,
        "ic50_key": ic50_key,
        "groupby": groupby or "",
        "regressor": str(regressor),
        "split": split,
        "test_share": test_share,
        "seed": seed,
        "n_lines": len(np.unique(pairs.line)),
        "n_drugs": len(np.unique(pairs.drug)),
        "n_train": int((~test).sum()),
        "n_test": int(test.sum()),
        "versions": {name: version_of(name) for name in ("scfm", "scikit-learn")},
    }
    scores = _scores(pairs, test, means, predicted, response.columns)
    logger.info("Pearson r %.3f", scores["pearson"])
    return target.store(Results(obsm={key: predictions}, uns={key: scores | {PARAMS: params}}))


def _check_options(regressor: Any, test_share: float) -> None:
    if isinstance(regressor, str) and regressor not in {"ridge", "boosting"}:
        msg = f"regressor={regressor!r} is not known; use 'ridge', 'boosting' or a regressor of scikit-learn."
        raise ValueError(msg)
    if not isinstance(regressor, str) and not all(hasattr(regressor, name) for name in ("fit", "predict")):
        msg = f"regressor must be 'ridge', 'boosting' or a regressor of scikit-learn; got {type(regressor).__name__}."
        raise TypeError(msg)
    if not 0 < test_share < 1:
        msg = f"test_share={test_share}: need a share between 0 and 1."
        raise ValueError(msg)


def _pairs_of(response: pd.DataFrame, groups: pd.Series | None) -> _Pairs:
    """Measurements of lines that have a group; groups in the order of their categories."""
    values = response.to_numpy(np.float64).T
    if np.isinf(values).any():
        msg = f"{np.isinf(values).sum():,} responses are infinite; leave them out (NaN)."
        raise ValueError(msg)
    codes = np.zeros(values.shape[1], np.int64)
    if groups is not None:
        codes = groups.astype("category").cat.codes.to_numpy().astype(np.int64)
    drug, line = np.nonzero(~np.isnan(values) & (codes >= 0))
    return _Pairs(drug, line, codes[line], values[drug, line])


def _points_of(embedding: Any, pairs: _Pairs, use_rep: str) -> NDArray[np.float64]:
    points = np.asarray(embedding, dtype=np.float64)
    bad = [line for line in np.unique(pairs.line) if not np.isfinite(points[line]).all()]
    if points.ndim != 2 or bad:
        what = f"{len(bad)} lines with NaN, the first is row {bad[0]}" if bad else f"shape {points.shape}"
        msg = f"obsm[{use_rep!r}] must be a matrix with values for each line that was measured; got {what}."
        raise ValueError(msg)
    return points


def _held_out(pairs: _Pairs, split: str, test_share: float, seed: int) -> NDArray[np.bool_]:
    """Which measurements are held out: upstream's draw, with a single measurement or a line as the unit."""
    rng = random.Random(seed)
    train = np.zeros(len(pairs.line), dtype=bool)
    for group in np.unique(pairs.group):
        members = np.flatnonzero(pairs.group == group)
        units = members if split == "pair" else np.unique(pairs.line[members])
        chosen = units[rng.sample(range(len(units)), int((1 - test_share) * len(units)))]
        train[chosen if split == "pair" else np.isin(pairs.line, chosen)] = True
    if train.all() or not train.any():
        msg = (
            f"Of {len(train):,} measurements {train.sum():,} are to learn from, which leaves nothing on one side: "
            f"split={split!r}, test_share={test_share}. Are the responses or groups missing?"
        )
        raise ValueError(msg)
    return ~train


def _drug_means(pairs: _Pairs, train: NDArray[np.bool_], n_drugs: int) -> NDArray[np.float64]:
    """Mean of each drug over what there is to learn from, or of all drugs where there is nothing."""
    n = np.bincount(pairs.drug[train], minlength=n_drugs)
    sums = np.bincount(pairs.drug[train], pairs.ic50[train], minlength=n_drugs)
    return np.divide(sums, n, out=np.full(n_drugs, pairs.ic50[train].mean()), where=n > 0)


def _per_drug(
    points: NDArray[np.float64],
    pairs: _Pairs,
    test: NDArray[np.bool_],
    means: NDArray[np.float64],
    model: Any,
) -> NDArray[np.float64]:
    """Predictions of a regression for each drug, on the standardised embedding."""
    from sklearn.base import clone
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = RidgeCV(alphas=np.logspace(-1, 5, 13)) if isinstance(model, str) else model
    predicted = means[pairs.drug]
    for start, stop in pairwise(np.searchsorted(pairs.drug, np.arange(len(means) + 1))):
        rows = np.arange(start, stop)
        learn, ask = rows[~test[rows]], rows[test[rows]]
        if len(learn) >= FEWEST_LINES and len(ask):
            fitted = make_pipeline(StandardScaler(), clone(model)).fit(points[pairs.line[learn]], pairs.ic50[learn])
            predicted[ask] = fitted.predict(points[pairs.line[ask]])
    return predicted[test]


def _boosted(
    points: NDArray[np.float64],
    pairs: _Pairs,
    test: NDArray[np.bool_],
    means: NDArray[np.float64],
    seed: int,
) -> NDArray[np.float64]:
    """Predictions of gradient boosting over all drugs, of the difference from the mean of the drug."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    mean = means[pairs.drug]
    features = np.column_stack([points[pairs.line], mean])
    fitted = HistGradientBoostingRegressor(random_state=seed).fit(features[~test], (pairs.ic50 - mean)[~test])
    return mean[test] + fitted.predict(features[test])


def _scores(
    pairs: _Pairs,
    test: NDArray[np.bool_],
    means: NDArray[np.float64],
    predicted: NDArray[np.float64],
    drugs: pd.Index,
) -> dict[str, Any]:
    drug, truth = pairs.drug[test], pairs.ic50[test]
    mean = means[drug]
    per_drug = {
        "n_train": np.bincount(pairs.drug[~test], minlength=len(drugs)),
        "n_test": np.bincount(drug, minlength=len(drugs)),
        "pearson": [_pearson(predicted[drug == i], truth[drug == i]) for i in range(len(drugs))],
    }
    return {
        "pearson": _pearson(predicted, truth),
        "pearson_drug_means": _pearson(mean, truth),
        "pearson_within_drugs": _pearson(predicted - mean, truth - mean),
        "per_drug": pd.DataFrame(per_drug, index=drugs.astype(str)),
    }


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Correlation, NaN where it says nothing."""
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")
