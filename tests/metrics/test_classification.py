"""The report of a classifier against scikit-learn, with missing labels, cells without an answer, and folds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from scfm.metrics import calibration_error, classification_report

CLASSES = ["T cell", "B cell", "NK cell", "monocyte"]
FIGURES = ["accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "calibration_error", "log_loss"]


def drawn(seed: int = 0, n: int = 200) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, n, p=[0.5, 0.3, 0.15, 0.05]).astype(object)
    probabilities = rng.dirichlet(np.ones(4), n)
    probabilities[np.arange(n), [CLASSES.index(label) for label in labels]] += 0.7
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = np.array(CLASSES, dtype=object)[probabilities.argmax(axis=1)]
    return {"labels": labels, "predicted": predicted, "probabilities": probabilities, "classes": CLASSES}


def test_equal_to_scikit_learn() -> None:
    cells = drawn()
    labels, predicted = cells["labels"].astype(str), cells["predicted"].astype(str)
    report = classification_report(**cells)
    assert 0.5 < report.accuracy < 1
    assert report.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert report.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert report.macro_f1 == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert report.weighted_f1 == pytest.approx(metrics.f1_score(labels, predicted, average="weighted"))
    order = np.argsort(CLASSES)
    assert report.log_loss == pytest.approx(metrics.log_loss(labels, cells["probabilities"][:, order]))
    codes = pd.Index(CLASSES).get_indexer(labels)
    assert report.calibration_error == calibration_error(cells["probabilities"], codes)
    assert (report.coverage, report.answered_accuracy) == (1, report.accuracy)
    np.testing.assert_array_equal(report.confusion, metrics.confusion_matrix(labels, predicted, labels=CLASSES))
    expected = metrics.precision_recall_fscore_support(labels, predicted, labels=CLASSES)
    np.testing.assert_allclose(report.per_class.to_numpy().T, expected)
    assert (
        report.per_class.index.tolist()
        == report.confusion.index.tolist()
        == report.confusion.columns.tolist()
        == CLASSES
    )


def test_missing_labels_are_left_out_and_counted() -> None:
    cells = drawn()
    missing = {"labels": [None, np.nan, pd.NA], "predicted": CLASSES[:3], "probabilities": np.eye(4)[:3]}
    more = {name: np.concatenate([cells[name], values]) for name, values in missing.items()}
    plain, report = classification_report(**cells), classification_report(**cells | more)
    assert (report.n_cells, report.n_unlabelled) == (200, 3)
    pd.testing.assert_frame_equal(
        report.to_frame().drop(columns="n_unlabelled"), plain.to_frame().drop(columns="n_unlabelled")
    )
    as_column = classification_report(**cells | more | {"labels": pd.Categorical(pd.Series(more["labels"]))})
    pd.testing.assert_frame_equal(as_column.to_frame(), report.to_frame())


@pytest.mark.parametrize("word", ["unknown", None, np.nan])
def test_cells_without_an_answer_count_as_wrong(word: Any) -> None:
    cells = drawn()
    answered = np.arange(200) % 4 > 0
    predicted = np.where(answered, cells["predicted"], word)
    report = classification_report(**cells | {"predicted": predicted})
    right = (cells["predicted"] == cells["labels"]) & answered
    assert report.coverage == 0.75
    assert report.accuracy == pytest.approx(right.mean())
    assert report.answered_accuracy == pytest.approx(right[answered].mean())
    assert report.answered_accuracy > report.accuracy
    assert report.confusion["no answer"].sum() == 50
    assert report.confusion.to_numpy().sum() == 200
    precision = metrics.precision_score(
        cells["labels"][answered].astype(str), predicted[answered].astype(str), labels=CLASSES, average=None
    )
    np.testing.assert_allclose(report.per_class["precision"], precision)
    recall = [right[cells["labels"] == name].mean() for name in CLASSES]
    np.testing.assert_allclose(report.per_class["recall"], recall)
    assert report.balanced_accuracy == pytest.approx(np.mean(recall))
    whole = classification_report(**cells)
    assert (report.log_loss, report.calibration_error) == (whole.log_loss, whole.calibration_error)


def test_nobody_is_answered() -> None:
    report = classification_report(["a", "b"], ["?", "?"], classes=["a", "b"], unknown="?")
    assert (report.accuracy, report.macro_f1, report.coverage) == (0, 0, 0)
    assert np.isnan(report.answered_accuracy)
    assert np.isnan(report.log_loss)
    assert report.per_class["precision"].isna().all()


def test_classes_without_cells() -> None:
    report = classification_report(["a", "a", "b"], ["a", "c", "b"], classes=["d", "c", "b", "a"])
    table = report.per_class
    np.testing.assert_array_equal(table["n_cells"], [0, 0, 1, 2])
    np.testing.assert_array_equal(table["precision"], [np.nan, 0, 1, 1])
    np.testing.assert_array_equal(table["recall"], [np.nan, np.nan, 1, 0.5])
    np.testing.assert_allclose(table["f1"], [np.nan, 0, 1, 2 / 3])
    assert report.balanced_accuracy == 0.75
    assert report.macro_f1 == pytest.approx(metrics.f1_score(["a", "a", "b"], ["a", "c", "b"], average="macro"))


def test_folds_are_scored_on_their_own() -> None:
    cells = drawn()
    folds = np.repeat([3, 1, 2], [100, 60, 40])
    folds[cells["labels"] == "monocyte"] = 1  # a class that two folds do not have
    report = classification_report(**cells, folds=folds)
    assert report.by_fold is not None
    assert report.by_fold.index.tolist() == [1, 2, 3]
    for fold, row in report.by_fold.iterrows():
        part = {name: cells[name][folds == fold] for name in ("labels", "predicted", "probabilities")}
        alone = classification_report(**part, classes=CLASSES)
        np.testing.assert_allclose(row[FIGURES].astype(float), alone.to_frame()[FIGURES].iloc[0])
        assert row["n_cells"] == alone.n_cells == (folds == fold).sum()
    line = report.to_frame("mine").loc["mine"]
    for figure in FIGURES:
        assert line[f"{figure}_mean"] == pytest.approx(np.mean(report.by_fold[figure]))
        assert line[f"{figure}_sd"] == pytest.approx(np.std(report.by_fold[figure], ddof=1))
    whole = classification_report(**cells).to_frame("mine").loc["mine"]
    pd.testing.assert_series_equal(line[whole.index], whole)


def test_rows_of_models_go_together() -> None:
    cells = drawn()
    table = pd.concat([classification_report(**cells).to_frame(name) for name in ("one", "other")])
    assert table.index.tolist() == ["one", "other"]
    assert table.notna().all(axis=None)


@given(st.integers(0, 2**31), st.integers(2, 60))
def test_neither_the_order_of_cells_nor_of_classes_matters(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    cells, folds = drawn(seed, n), rng.integers(0, 3, n)
    cells["labels"][:: rng.integers(2, 5)] = None
    cells["labels"][1] = "B cell"
    report = classification_report(**cells, folds=folds)
    order, columns = rng.permutation(n), rng.permutation(4)
    again = classification_report(
        cells["labels"][order],
        cells["predicted"][order],
        probabilities=cells["probabilities"][np.ix_(order, columns)],
        classes=[CLASSES[at] for at in columns],
        folds=folds[order],
    )
    pd.testing.assert_frame_equal(again.to_frame(), report.to_frame())
    assert again.classes == tuple(CLASSES[at] for at in columns)
    pd.testing.assert_frame_equal(again.confusion.loc[CLASSES, CLASSES], report.confusion)
    pd.testing.assert_frame_equal(again.per_class.loc[CLASSES], report.per_class)
    assert again.by_fold is not None
    pd.testing.assert_frame_equal(again.by_fold, report.by_fold)


def test_classes_are_sorted_unless_given() -> None:
    assert classification_report(["b", "a", "c"], ["d", "a", "unknown"]).classes == ("a", "b", "c", "d")
    assert classification_report([10, 2], [2, 2]).classes == ("10", "2")


def test_columns_in_another_order_than_the_classes_are_warned_of() -> None:
    cells = drawn()
    with pytest.warns(
        UserWarning, match=r"of 200 cells is not the one of the highest probability.*order of classes=\?"
    ):
        classification_report(**cells | {"classes": CLASSES[::-1]})
    even = np.full((2, 2), 0.5)
    assert classification_report(["a", "b"], ["a", "b"], probabilities=even, classes=["a", "b"]).accuracy == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": "T cell"}, r"labels must be .* got str of shape \(\)"),
        ({"predicted": ["T cell"]}, "predicted has 1 values for 200 labels"),
        ({"labels": [None] * 200}, "labels: all of 200 are missing"),
        ({"classes": None}, "probabilities need classes="),
        ({"classes": CLASSES[:3]}, "holds 'monocyte', not among classes="),
        ({"classes": ["T cell"]}, "classes must be two or more different names; got 1: T cell"),
        ({"classes": ["a", "a"]}, "different names; got 2: a, a"),
        ({"classes": [*CLASSES, "more"]}, r"probabilities has shape \(200, 4\); there are 200 labels and 5 classes"),
        ({"unknown": "B cell"}, "There is a class 'B cell', the word for no answer"),
        ({"probabilities": np.full((200, 4), 0.3)}, "200 of 200 rows with negative values or a sum other than 1"),
        ({"probabilities": np.full((200, 4), np.nan)}, "NaN or infinity"),
        ({"folds": [0, 1]}, r"folds must be a whole number for each of 200 cells; got int64 of shape \(2,\)"),
        ({"folds": np.full(200, np.nan)}, "folds must be a whole number"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_report(**drawn() | changed)


def test_a_single_class_is_nothing_to_tell_apart() -> None:
    with pytest.raises(ValueError, match="two or more different names; got 1: a"):
        classification_report(["a", None], ["a", "unknown"])
