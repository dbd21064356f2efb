"""What columns of ``obs`` are read as, and losses of both kinds of targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, r2_score
from torch.nn import functional as F

from scfm.train.supervised.figures import check_monitor, figures, judged, none_judged
from scfm.train.supervised.predictions import Prediction, probabilities
from scfm.train.supervised.targets import Classes, Numbers, target_of

COLUMNS: dict[str, tuple[Any, tuple[str, ...], list[int]]] = {
    "whole numbers": ([10, 9, 10], ("10", "9"), [0, 1, 0]),
    "truth values": ([True, False, True], ("False", "True"), [1, 0, 1]),
    "categories, one unused, in an order of their own": (
        pd.Categorical(["b", "a", None], categories=["c", "b", "a"], ordered=True),
        ("a", "b"),
        [1, 0, -1],
    ),
    "nullable text": (pd.array(["b", None, "a"], dtype="string"), ("a", "b"), [1, -1, 0]),
    "nullable whole numbers": (pd.array([3, None, 1], dtype="Int64"), ("1", "3"), [1, -1, 0]),
    "nullable truth values": (pd.array([True, None, False], dtype="boolean"), ("False", "True"), [1, -1, 0]),
    "commas, line breaks, other scripts": (["a,b", "a\nb", "β"], ("a\nb", "a,b", "β"), [1, 0, 2]),
    "objects of several types": (np.array(["x", 1, None], dtype=object), ("1", "x"), [1, 0, -1]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_labels(kind: str) -> None:
    given, labels, codes = COLUMNS[kind]
    column = pd.Series(given)
    target = Classes.of(column, "kind")
    assert target.labels == labels
    assert target.values(column, "kind").tolist() == codes
    assert target_of(target.as_dict()) == target


@pytest.mark.parametrize("dtype", [object, "string", "category"])
def test_a_label_that_stands_for_none(dtype: Any) -> None:
    column = pd.Series(["a", "none", "b", None], dtype=dtype)
    assert Classes.of(column, "kind", "none").values(column, "kind", "none").tolist() == [0, -1, 1, -1]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["a", "a", None], r"obs\['kind'\] has the label 'a' only; a classifier needs two classes at least"),
        ([None, None], "has no label"),
        ([1.0, 2.0], "holds float64 values; labels are text or categories .*CellRegressor predicts numbers"),
        (["a", "b", "nan"], "has the label 'nan', which stands for none: name it by unlabeled_category='nan'"),
        (["a", "b", " "], "has the label ' ', which stands for none"),
    ],
)
def test_columns_that_are_no_labels(given: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Classes.of(pd.Series(given), "kind")


def test_a_label_that_was_not_seen() -> None:
    with pytest.raises(ValueError, match=r"has the label 'c', which the model has not seen; it knows 'a', 'b'"):
        Classes(("a", "b")).values(pd.Series(["a", "c"]), "kind")


@pytest.mark.parametrize("dtype", ["int64", "float32", "Int32", "Float64"])
def test_numbers(dtype: str) -> None:
    column = pd.Series([1, 3], dtype=dtype)
    values = Numbers().values(column, "age")
    target = Numbers.of(values, "age")
    assert (target.mean, target.sd) == (2.0, 1.0)
    assert target.scaled(values).tolist() == [-1, 1]
    assert target_of(target.as_dict()) == target


def test_missing_numbers() -> None:
    values = Numbers().values(pd.Series([1, None, 3], dtype="Int64"), "age")
    np.testing.assert_array_equal(values, [1, np.nan, 3])
    assert Numbers.of(values, "age").mean == 2
    assert Numbers.of(np.array([0.1] * 7), "age").scaled(np.array([0.1] * 7)) == pytest.approx(np.zeros(7), abs=2)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["a"], r"holds (object|str) values; numbers are needed"),
        ([True], "holds bool values"),
        ([1.0, np.inf, -np.inf], "holds infinite values in 2 cells; set them to NaN"),
        (pd.Categorical([1, 2]), "holds category values"),
    ],
)
def test_columns_that_are_no_numbers(given: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Numbers().values(pd.Series(given), "age")


def test_large_numbers_are_told_apart() -> None:
    seconds = 1.7e9 + np.arange(100.0)  # float32 has steps of 128 there
    target = Numbers.of(seconds, "when")
    scaled = target.scaled(seconds)
    np.testing.assert_allclose(scaled * target.sd + target.mean, seconds, atol=1e-3)
    assert len(set(scaled.tolist())) == 100


def test_losses_are_those_of_torch() -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(50, 3)).astype(np.float32))
    codes = torch.from_numpy(rng.integers(-1, 3, 50))
    weights = torch.tensor([0.5, 1.0, 2.0])
    target = Classes(("a", "b", "c"), tuple(weights.tolist()))
    expected = F.cross_entropy(scores, codes, weights, ignore_index=-1)
    torch.testing.assert_close(target.loss(scores, codes) / target.count(codes), expected)
    values = torch.from_numpy(np.where(np.arange(50) % 5 == 0, np.nan, rng.normal(size=50)).astype(np.float32))
    known = values.isfinite()
    numbers = Numbers()
    torch.testing.assert_close(
        numbers.loss(scores, values) / numbers.count(values), F.mse_loss(scores[known, 0], values[known])
    )


def test_figures_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(60, 3)).astype(np.float32))
    codes = torch.from_numpy(rng.integers(-1, 3, 60))
    target: Any = Classes(("a", "b", "c"))
    sums = none_judged(target)
    for part in np.array_split(np.arange(60), 7):
        sums += judged(target, scores[part], codes[part])
    known, found = codes >= 0, scores.argmax(dim=1)
    got = figures(target, sums)
    assert got["macro_f1"] == pytest.approx(f1_score(codes[known], found[known], average="macro"))
    assert got["accuracy"] == pytest.approx((codes == found)[known].double().mean().item())

    ages = 1e6 + rng.normal(size=60)
    target = Numbers.of(ages, "age")
    values = torch.from_numpy(target.scaled(ages))
    values[:5] = np.nan
    sums = none_judged(target)
    for part in np.array_split(np.arange(60), 7):
        sums += judged(target, scores[part, :1], values[part])
    predicted = probabilities(target, scores[:, :1].numpy().astype(np.float64), 1.0)
    got = figures(target, sums)
    assert got["r2"] == pytest.approx(r2_score(values[5:], scores[5:, 0]), abs=1e-6)
    assert got["pearson"] == pytest.approx(np.corrcoef(ages[5:], scores[5:, 0])[0, 1], abs=1e-5)
    assert predicted.shape == (60, 1)


def test_no_cells_to_judge() -> None:
    for target in (Classes(("a", "b")), Numbers()):
        assert figures(target, none_judged(target))["loss"] == 0


def test_figures_that_are_not_computed() -> None:
    check_monitor("validation_macro_f1", {"kind": Classes(("a", "b"))})
    check_monitor("validation_age_r2", {"kind": Classes(("a", "b")), "age": Numbers()})
    with pytest.raises(ValueError, match="there are 'validation_loss', 'validation_r2', 'validation_pearson'"):
        check_monitor("validation_macro_f1", {"age": Numbers()})
    with pytest.raises(ValueError, match="monitor='validation_accuracy' is not known; .* 'validation_kind_accuracy'"):
        check_monitor("validation_accuracy", {"kind": Classes(("a", "b")), "age": Numbers()})


def test_a_class_may_be_called_unknown() -> None:
    shares = np.array([[0.9, 0.1], [0.4, 0.6], [np.nan, np.nan]], np.float32)
    found = Prediction(Classes(("known", "unknown")), pd.Index(list("abc")), shares, threshold=0.95).labels()
    assert found.categories.tolist() == ["known", "unknown"]
    assert found[:2].tolist() == ["unknown", "unknown"]
    assert pd.isna(found[2])
