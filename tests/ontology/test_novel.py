from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from scfm.ontology import novel_type_scores, prototypes


def slowly(values: np.ndarray, known: np.ndarray, ppr: np.ndarray) -> np.ndarray:
    """Scores by scipy, one cell and target at a time."""
    lengths = np.linalg.norm(values, axis=1)[:, None] * np.linalg.norm(known, axis=1)
    cosines = 100 * np.divide(values @ known.T, lengths, out=np.zeros(lengths.shape), where=lengths > 0)
    return np.array([[spearmanr(a, b).statistic for b in ppr.astype(np.float32)] for a in cosines])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block", [1, 70, 10**6])
def test_equals_scipy(dtype: type, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scfm.ontology.novel.BLOCK", block)
    rng = np.random.default_rng(0)
    values, known = rng.normal(size=(23, 8)).astype(dtype), rng.normal(size=(15, 8)).astype(dtype)
    known[[3, 7]] = 0  # types without a cell tie with each other
    known[9] = known[4]
    ppr = rng.random((4, 15)).round(1)  # many ties
    scores = novel_type_scores(values, known, ppr)
    assert scores.dtype == np.float64
    expected = slowly(values.astype(np.float64), known.astype(np.float64), ppr)
    np.testing.assert_allclose(scores, expected, atol=1e-9, rtol=0)


@given(st.data())
def test_ties_of_all_kinds(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 12))
    row = st.lists(st.integers(-3, 3), min_size=n, max_size=n).filter(lambda row: len(set(row)) > 1)
    cosines, ppr = (np.array(data.draw(st.lists(row, min_size=1, max_size=4)), dtype=float) for _ in range(2))
    # one direction a type, so that the cosines order as the numbers do
    scores = novel_type_scores(cosines, np.eye(n), ppr)
    expected = np.array([[spearmanr(a, b).statistic for b in ppr] for a in cosines])
    np.testing.assert_allclose(scores, expected, atol=1e-12, rtol=0)


def test_pagerank_counts_as_float32() -> None:
    ppr = np.array([[0.1, 0.1 + 1e-12, 0.3]])  # a tie in float32 only
    scores = novel_type_scores(np.array([[1.0, 2.0, 3.0]]), np.eye(3), ppr)
    np.testing.assert_allclose(scores, [[spearmanr([1, 2, 3], [1, 1, 2]).statistic]], atol=1e-12)


def test_cells_without_a_direction() -> None:
    values = np.array([[1.0, 2.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [1.0, 1.0]])
    scores = novel_type_scores(values, np.eye(2), np.array([[0.1, 0.2]]))
    np.testing.assert_allclose(scores, [[1], [np.nan], [np.nan], [np.nan], [np.nan]])
    assert novel_type_scores(values[:0], np.eye(2), np.array([[0.1, 0.2]])).shape == (0, 1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2,), (3, 4), (1, 3)), "values must have two dimensions; found shape \\(2,\\)"),
        (((2, 4), (3, 5), (1, 3)), "do not match: found \\(2, 4\\), \\(3, 5\\) and \\(1, 3\\)"),
        (((2, 4), (3, 4), (1, 2)), "do not match"),
    ],
)
def test_shapes(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        novel_type_scores(*(np.ones(shape) for shape in shapes))


def test_a_constant_target_is_named() -> None:
    ppr = np.array([[0.1, 0.2], [0.1, 0.1], [0.3, 0.3 + 1e-12]])
    with pytest.raises(ValueError, match="target in row 1, in row 2 is the same to all 2 types"):
        novel_type_scores(np.ones((1, 2)), np.eye(2), ppr)
    with pytest.raises(ValueError, match="target 'B cell', 'C cell' is the same"):
        novel_type_scores(np.ones((1, 2)), np.eye(2), ppr, targets=["A cell", "B cell", "C cell"])
    with pytest.raises(ValueError, match="the same to all 1 types.*more than one known type"):
        novel_type_scores(np.ones((1, 1)), np.eye(1), np.array([[0.5]]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="prototypes holds values that are not finite"):
        novel_type_scores(np.ones((1, 2)), np.array([[1, bad], [1, 1]]), np.array([[0.1, 0.2]]))
    with pytest.raises(ValueError, match="ppr holds values that are not finite"):
        novel_type_scores(np.ones((1, 2)), np.eye(2), np.array([[0.1, bad]]))


@pytest.mark.parametrize("block", [1, 10**6])
@pytest.mark.parametrize("kind", ["str", "int", "categorical"])
def test_prototypes(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    monkeypatch.setattr("scfm.ontology.novel.BLOCK", block)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 3)).astype(np.float32) + 100
    codes = rng.integers(0, 4, 50)
    order = [2, 0, 9, 1]  # 9 has no cell, 3 is left out
    labels: object = codes
    if kind != "int":
        labels, order = np.array([f"type {c}" for c in codes]), [f"type {c}" for c in order]  # type: ignore[misc]
    if kind == "categorical":
        labels = pd.Series(pd.Categorical(labels)).mask(codes == 1)
    found = prototypes(values, labels, order)  # type: ignore[arg-type]
    assert found.dtype == np.float64
    for i, c in enumerate([2, 0, 9, 1]):
        cells = values[codes == c].astype(np.float64)
        absent = not len(cells) or (kind == "categorical" and c == 1)
        np.testing.assert_allclose(found[i], 0 if absent else cells.mean(axis=0), atol=1e-9)


def test_prototypes_refuse() -> None:
    values = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"labels must be one for each of 3 cells; got shape \(2,\)"):
        prototypes(values, ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="No label is one of the 1 categories, e.g. \\['c'\\]"):
        prototypes(values, ["a", "b", "a"], ["c"])
    with pytest.raises(ValueError, match="categories holds 'a' more than once"):
        prototypes(values, ["a", "b", "a"], ["a", "a"])
    values[1, 0] = np.nan
    with pytest.raises(ValueError, match="Cells of 'b' have values that are not finite"):
        prototypes(values, ["a", "b", "a"], ["a", "b"])
    assert prototypes(values, ["a", "b", "a"], ["a"]).tolist() == [[1, 1]]
