"""Equal to scCello's own annotation and marker scores, on values that it wrote for a random checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn import functional as F

from scfm.annotate import LinearProbe, OntologyScores, Reference, predict_types
from scfm.metrics import marker_auroc
from scfm.ontology import read_ontology

if TYPE_CHECKING:
    from pathlib import Path

INPUTS = {
    "norm0_cellcls0": "cls_stack",
    "norm1_cellcls0": "cls_last_norm",
    "norm0_cellcls1": "cell_cls",
    "norm1_cellcls1": "cell_cls_norm",
}


@pytest.fixture(scope="module")
def folder(reference: Path) -> Path:
    return reference / "fixtures" / "sccello"


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "expected.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("case", INPUTS)
def test_linear_probe(expected: dict[str, np.ndarray], case: str) -> None:
    values = expected[INPUTS[case]]
    probe = LinearProbe(expected["lp_weight"], expected["lp_bias"])
    logits = probe.logits(values[:, -1] if values.ndim == 3 else values)
    np.testing.assert_allclose(logits, expected[f"lp_logits_{case}"], atol=2e-5, rtol=0)
    if f"lp_loss_{case}" in expected:  # needs the logits of all types
        loss = F.cross_entropy(torch.tensor(logits), torch.tensor(expected["lp_labels"]).long())
        np.testing.assert_allclose(float(loss), expected[f"lp_loss_{case}"], rtol=2e-5)


def test_types_by_the_ontology(folder: Path, expected: dict[str, np.ndarray]) -> None:
    known = [id.decode() for id in expected["nct_pretrain_clid"]]
    known[int(np.flatnonzero((expected["nct_voting_sim"] == 0).all(axis=0))[0])] = ""  # upstream finds no term for it
    codes = np.flatnonzero(expected["nct_prototypes"].any(axis=1))  # one label has no cell
    reference = Reference(expected["nct_prototypes"][codes], codes, known)
    ontology = read_ontology(folder / "cl_small.owl", edges="upstream")
    targets = [id.decode() for id in expected["nct_target_clid"]]
    query = expected["nct_query_repr"]
    scores = OntologyScores(ontology, reference).scores(query, targets)
    np.testing.assert_allclose(scores, expected["nct_scores"], atol=1e-9, rtol=0)
    found = predict_types(reference, query, ontology, targets)
    np.testing.assert_array_equal(found.probabilities.argmax(axis=1), expected["nct_pred"])
    np.testing.assert_allclose(found.probabilities, expected["nct_prob"], atol=1e-7, rtol=0)
    np.testing.assert_allclose(found.novelty, 1 - expected["nct_scores"].max(axis=1), atol=1e-7, rtol=0)


def test_auroc_of_marker_genes(expected: dict[str, np.ndarray]) -> None:
    flat, flags, right = (expected[f"mk_{name}"] for name in ("scores_flat", "is_marker_flat", "auroc"))
    lengths = np.diff(expected["mk_ids_offsets"]) - 1  # without <cls>
    indptr = np.concatenate([[0], lengths.cumsum()])
    columns = np.concatenate([np.arange(n) for n in lengths])
    scores = sparse.csr_matrix((flat, columns, indptr))
    mask = sparse.csr_matrix((flags, columns, indptr), shape=scores.shape)
    np.testing.assert_allclose(marker_auroc(scores, mask), right, atol=1e-9, rtol=0)
