"""Which genes two embeddings were made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from scfm.genes import Vocabulary, align, overlap, panels_in

IDS = [f"ENSG{i:011d}" for i in range(1, 21)]
VOCABULARY = Vocabulary.of_names(IDS, ["<pad>"])


def genes(*ids: str, vocabulary: Vocabulary = VOCABULARY) -> dict[str, Any]:
    return align(pd.DataFrame(index=list(ids)), vocabulary).report.as_dict()


def test_it_says_which_genes_matched() -> None:
    stored = genes(*IDS[3:9], f"{IDS[3]}.1")
    (panel,) = panels_in(stored)[VOCABULARY.sha256]
    assert np.flatnonzero(panel).tolist() == list(range(3, 9))


def test_overlap() -> None:
    found = overlap(genes(*IDS[:12]), genes(*IDS[9:]))
    assert found is not None
    assert found == (3, 12, 11)
    assert found.share == 3 / 12


def test_several_files() -> None:
    parts = [genes(*IDS[:12]), genes(*IDS[2:])]
    joined: dict[str, Any] = {name: [part[name] for part in parts] for name in parts[0]}
    joined["vocabulary_sha256"] = VOCABULARY.sha256
    for stored in (joined, joined | {"panel": np.array(joined["panel"], dtype=object)}):  # as a file gives it back
        assert overlap(stored, genes(*IDS)) == (10, 18, 20)
        assert overlap(stored, stored) == (10, 18, 18)


@pytest.mark.parametrize(
    "stored",
    [
        {},
        None,
        "genes",
        genes(*IDS[:5], vocabulary=Vocabulary.of_names(IDS[:10], [])),
        genes(*IDS) | {"panel": "no base64!"},
        genes(*IDS) | {"panel": "AA=="},
        genes(*IDS) | {"panel": 3},
        genes(*IDS) | {"panel": [["AA=="], ["AA==", "AA=="]]},
        genes(*IDS) | {"vocabulary_sha256": [["a"]]},
    ],
)
def test_nothing_can_be_said(stored: Any) -> None:
    assert overlap(stored, genes(*IDS)) is None


def test_a_part_is_left_out() -> None:
    found = align(pd.DataFrame(index=[*IDS[:10], "x"]), VOCABULARY)
    others = [np.isin(np.arange(24), range(5, 20)), np.isin(np.arange(24), range(7))]
    part = found.shared(others, VOCABULARY)
    assert part.tokens.tolist() == [-2] * 5 + [6, 7] + [-2] * 3 + [-1]
    assert (part.report.matched, part.report.not_shared) == (10, 8)
    assert overlap(part.report.as_dict(), genes(*IDS[5:7])) == (2, 2, 2)
    with pytest.raises(ValueError, match="No gene is shared: the data have 10 genes of the model"):
        found.shared([np.zeros(24, bool)], VOCABULARY)
