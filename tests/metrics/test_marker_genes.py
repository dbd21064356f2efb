"""Areas under ROC curves against scikit-learn, and the values of upstream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import sparse

from scfm.metrics import marker_auroc, marker_genes

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_GENES = 30
GENES = [f"g{i}" for i in range(N_GENES)]


def draw(n_cells: int = 40) -> tuple[sparse.csr_matrix, NDArray[np.bool_]]:
    """Scores with ties and stored zeros; markers; a cell without genes, one without markers, one with markers only."""
    rng = np.random.default_rng(0)
    scored = rng.random((n_cells, N_GENES)) < 0.6
    is_marker = rng.random((n_cells, N_GENES)) < 0.3
    scored[3], is_marker[5] = False, False
    is_marker[7] = scored[7]
    cells, columns = np.nonzero(scored)
    values = rng.integers(0, 6, len(cells)).astype(np.float32) / 7
    indptr = np.concatenate([[0], scored.sum(axis=1).cumsum()])
    return sparse.csr_matrix((values, columns, indptr), shape=scored.shape), is_marker


def expected(scores: sparse.csr_matrix, is_marker: NDArray[np.bool_]) -> NDArray[np.float64]:
    from sklearn.metrics import roc_auc_score

    out = np.full(scores.shape[0], np.nan)
    for i in range(scores.shape[0]):
        part = slice(scores.indptr[i], scores.indptr[i + 1])
        flags = is_marker[i, scores.indices[part]]
        if 0 < flags.sum() < len(flags):
            out[i] = roc_auc_score(flags, scores.data[part])
    return out


@pytest.mark.parametrize("block", [1, 50, 4_000_000])
def test_against_sklearn(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marker_genes, "BLOCK_VALUES", block)
    scores, is_marker = draw()
    right = expected(scores, is_marker)
    assert (scores.data == 0).any()
    assert np.flatnonzero(np.isnan(right)).tolist() == [3, 5, 7]
    dense = np.full(scores.shape, np.nan)
    for i in range(len(dense)):
        part = slice(scores.indptr[i], scores.indptr[i + 1])
        dense[i, scores.indices[part]] = scores.data[part]
    for form in (scores, sparse.csr_array(scores), scores.tocsc(), dense):
        for mask in (is_marker, sparse.csr_matrix(is_marker), sparse.csc_array(is_marker)):
            np.testing.assert_allclose(marker_auroc(form, mask), right, rtol=1e-12)


def test_markers_by_label() -> None:
    scores, _ = draw()
    labels = np.array(["a", "b", "none", "unheard of"])[np.arange(scores.shape[0]) % 4]
    markers = {"a": ["g1", "g9", "g12"], "b": ["g2", "not measured"], "none": [], "c": ["g3"]}
    mask = np.array([[gene in markers.get(label, []) for gene in GENES] for label in labels])
    ours = marker_auroc(scores, markers, labels=labels, genes=GENES)
    np.testing.assert_allclose(ours, expected(scores, mask), rtol=1e-12)
    assert 5 < np.isfinite(ours).sum() < 20


def test_no_cells() -> None:
    assert marker_auroc(sparse.csr_matrix((0, 4)), np.zeros((0, 4), bool)).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"markers": {"a": ["g1"]}}, "needs labels="),
        ({"markers": {"a": ["g1"]}, "labels": ["a"] * 40, "genes": GENES[1:]}, r"labels \(40,\) and genes \(29,\)"),
        ({"markers": np.zeros((40, 29), bool)}, r"mask of booleans of shape \(40, 30\)"),
        ({"markers": np.zeros((40, 30))}, "got float64"),
        ({"scores": np.zeros(3), "markers": np.zeros(3, bool)}, "must be a matrix"),
        ({"scores": sparse.csr_matrix([[np.nan, 1]]), "markers": np.ones((1, 2), bool)}, "1 scores are NaN"),
    ],
)
def test_wrong_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        marker_auroc(**{"scores": draw()[0]} | arguments)


def test_markers_that_meet_nothing() -> None:
    scores, how = [[1.0, 2.0]], {"labels": ["a"], "genes": ["g1", "g2"]}
    with pytest.raises(ValueError, match="No cell has a label of markers"):
        marker_auroc(scores, {"b": ["g1"]}, **how)
    with pytest.raises(ValueError, match="No gene of scores is a marker"):
        marker_auroc(scores, {"a": ["g3"]}, **how)
    with pytest.raises(TypeError, match=r"markers\['a'\] is one string"):
        marker_auroc(scores, {"a": "g1"}, **how)
