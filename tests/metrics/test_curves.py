"""ROC and precision-recall curves against scikit-learn, alone and over folds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from scfm.metrics import pr_curves, roc_curves

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = ["a", "b", "c"]
BOTH = pytest.mark.parametrize(
    ("draw", "area"), [(roc_curves, metrics.roc_auc_score), (pr_curves, metrics.average_precision_score)]
)


def drawn(seed: int = 0, n: int = 120, n_classes: int = 3, digits: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Classes and probabilities, with ties."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, n_classes, n)
    codes[:n_classes] = range(n_classes)
    raw = np.round(rng.random((n, n_classes)) + 0.5 * np.eye(n_classes)[codes], digits) + 0.01
    return np.array(CLASSES, dtype=object)[codes], raw / raw.sum(axis=1, keepdims=True)


@BOTH
def test_areas_equal_those_of_scikit_learn(draw: Callable[..., Any], area: Callable[..., float]) -> None:
    labels, probabilities = drawn()
    curves = draw(labels, probabilities, CLASSES)
    each = [area(labels == name, probabilities[:, at]) for at, name in enumerate(CLASSES)]
    assert all(0.5 < one < 1 for one in each)
    assert curves.areas.index.tolist() == curves.mean.columns.tolist() == [*CLASSES, "macro"]
    np.testing.assert_allclose(curves.areas["area"], [*each, np.mean(each)])
    np.testing.assert_array_equal(curves.areas["n_cells"], [*((labels == name).sum() for name in CLASSES), 120])
    assert curves.areas["sd"].isna().all()
    assert curves.sd.isna().all(axis=None)
    np.testing.assert_allclose(curves.mean["macro"], curves.mean[CLASSES].mean(axis=1))
    assert curves.mean.shape == (100, 4)


def test_points_of_a_roc_curve() -> None:
    """Each at its false positive rate, between the thresholds beside it; the first is the origin."""
    labels, probabilities = drawn()
    curve = roc_curves(labels, probabilities, CLASSES).mean["b"]
    false, true, _ = metrics.roc_curve(labels == "b", probabilities[:, 1])
    np.testing.assert_allclose(curve.iloc[1:], np.interp(curve.index[1:], false, true))
    assert (curve.index[0], curve.iloc[0], curve.index[-1], curve.iloc[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(curve, curve.index) == pytest.approx(metrics.auc(false, true), abs=0.01)


def test_points_of_a_precision_recall_curve() -> None:
    """The precision of the fewest cells that reach the recall; one threshold after the other."""
    labels, probabilities = drawn()
    positive, share = labels == "b", probabilities[:, 1]
    curve = pr_curves(labels, probabilities, CLASSES).mean["b"]
    for recall in (0, 0.25, 50 / 99, 1):
        at = np.argmin(abs(curve.index.to_numpy() - recall))
        wanted = max(curve.index[at] * positive.sum() - 1e-9, 1)
        threshold = max(value for value in share if (positive & (share >= value)).sum() >= wanted)
        assert curve.iloc[at] == pytest.approx(positive[share >= threshold].mean())


@BOTH
def test_of_two_classes_the_second(draw: Callable[..., Any], area: Callable[..., float]) -> None:
    labels, probabilities = drawn(n_classes=2)
    curves = draw(labels, probabilities, ["a", "b"])
    assert curves.areas.index.tolist() == curves.mean.columns.tolist() == ["b"]
    assert curves.areas.loc["b", "area"] == pytest.approx(area(labels == "b", probabilities[:, 1]))


@BOTH
def test_folds_are_weighted_by_their_cells(draw: Callable[..., Any], area: Callable[..., float]) -> None:
    labels, probabilities = drawn()
    folds = np.repeat([7, 2, 5], [60, 40, 20])
    labels[(folds == 5) & (labels == "c")] = "a"  # a class that one fold does not have
    curves = draw(labels, probabilities, CLASSES, folds=folds)
    alone = {fold: draw(labels[folds == fold], probabilities[folds == fold], CLASSES) for fold in (2, 7)}
    weights = {2: 0.4, 7: 0.6}
    for table, found in ((lambda one: one.mean["c"], curves.mean["c"]), (lambda one: one.areas["area"]["c"], None)):
        mean = sum(weights[fold] * table(alone[fold]) for fold in (2, 7))
        np.testing.assert_allclose(curves.areas.loc["c", "area"] if found is None else found, mean)
    np.testing.assert_array_equal(curves.areas["n_folds"], [3, 3, 2, 3])
    areas = np.array([alone[fold].areas.loc["c", "area"] for fold in (2, 7)])
    w = np.array([0.4, 0.6])
    variance = (w * (areas - w @ areas) ** 2).sum() / (1 - (w**2).sum())
    assert curves.areas.loc["c", "sd"] == pytest.approx(np.sqrt(variance))
    small = folds == 5
    each = [area(labels[small] == name, probabilities[small, at]) for at, name in enumerate("ab")]
    macro = [alone[fold].areas.loc["macro", "area"] for fold in (7, 2)]
    assert curves.areas.loc["macro", "area"] == pytest.approx(np.average([*macro, np.mean(each)], weights=[60, 40, 20]))


@BOTH
def test_folds_of_one_size_have_the_sd_of_a_sample(draw: Callable[..., Any], area: Callable[..., float]) -> None:
    labels, probabilities = drawn()
    folds = np.arange(120) % 4
    found = draw(labels, probabilities, CLASSES, folds=folds).areas.loc["a"]
    areas = [area(labels[folds == fold] == "a", probabilities[folds == fold, 0]) for fold in range(4)]
    assert found["area"] == pytest.approx(np.mean(areas))
    assert found["sd"] == pytest.approx(np.std(areas, ddof=1))


@BOTH
def test_ties_alone_are_chance(draw: Callable[..., Any], area: Callable[..., float]) -> None:
    labels, _ = drawn()
    curves = draw(labels, np.full((120, 3), 1 / 3), CLASSES)
    expected = [0.5] * 3 if draw is roc_curves else [(labels == name).mean() for name in CLASSES]
    np.testing.assert_allclose(curves.areas["area"].iloc[:3], expected)
    along = curves.mean.index.to_numpy()[:, None] if draw is roc_curves else np.array(expected)
    np.testing.assert_allclose(curves.mean[CLASSES], np.broadcast_to(along, (100, 3)), atol=1e-12)


@BOTH
def test_a_class_without_cells_has_no_curve(draw: Callable[..., Any], area: Callable[..., float]) -> None:
    labels, probabilities = drawn()
    labels[labels == "b"] = "a"
    curves = draw(labels, probabilities, CLASSES)
    assert curves.mean["b"].isna().all()
    assert np.isnan(curves.areas.loc["b", "area"])
    assert (curves.areas.loc["b", "n_cells"], curves.areas.loc["b", "n_folds"]) == (0, 0)
    assert curves.areas.loc["macro", "area"] == pytest.approx(curves.areas.loc[["a", "c"], "area"].mean())


@given(st.integers(0, 2**31), st.integers(6, 60), st.integers(1, 3))
def test_neither_the_order_of_cells_nor_of_classes_matters(seed: int, n: int, n_folds: int) -> None:
    rng = np.random.default_rng(seed)
    labels, probabilities = drawn(seed, n, digits=1)
    labels[3:][rng.random(n - 3) < 0.2] = None
    folds, order, columns = rng.integers(0, n_folds, n), rng.permutation(n), rng.permutation(3)
    for draw in (roc_curves, pr_curves):
        try:
            plain = draw(labels, probabilities, CLASSES, folds=folds)
        except ValueError:
            assert n_folds > 1  # each fold with a single class
            continue
        again = draw(
            labels[order],
            probabilities[np.ix_(order, columns)],
            [CLASSES[at] for at in columns],
            folds=folds[order],
        )
        pd.testing.assert_frame_equal(again.areas.loc[plain.areas.index], plain.areas)
        pd.testing.assert_frame_equal(again.mean[plain.mean.columns], plain.mean)
        pd.testing.assert_frame_equal(again.sd[plain.sd.columns], plain.sd)
        assert ((plain.mean.to_numpy() >= 0) & (plain.mean.to_numpy() <= 1 + 1e-12) | plain.mean.isna()).all(axis=None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": ["a"] * 119}, r"probabilities has shape \(120, 3\); there are 119 labels and 3 classes"),
        ({"labels": ["a"] * 120}, "labels: no class has both cells and others, so"),
        ({"labels": [None] * 120}, "labels: no class has both"),
        ({"folds": np.arange(120)}, "labels: no class has both cells and others in a fold"),
        ({"labels": ["x"] * 120}, "labels holds 'x', not among classes='a', 'b', 'c'"),
        ({"classes": ["a", "b", "macro"]}, "classes holds 'macro'"),
        ({"classes": ["a", "b"]}, "not among classes="),
        ({"folds": ["a"] * 120}, "folds must be a whole number"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], message: str) -> None:
    labels, probabilities = drawn()
    call = {"labels": labels, "probabilities": probabilities, "classes": CLASSES} | changed
    for draw in (roc_curves, pr_curves):
        with pytest.raises(ValueError, match=message):
            draw(**call)
