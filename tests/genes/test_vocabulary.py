from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from scfm.genes import Vocabulary

if TYPE_CHECKING:
    from pathlib import Path

SPECIALS = {"<pad>": 0, "<mask>": 1}


def make(**changes: object) -> Vocabulary:
    values: dict[str, object] = {
        "genes": np.array(["ENSG1", "ENSG2"]),
        "tokens": np.array([2, 3], dtype=np.int32),
        "medians": np.array([0.1 + 0.2, 7.16e-07]),
        "special_tokens": SPECIALS,
        "mapping": {"ENSG1": "ENSG1", "ENSG2": "ENSG2", "OLD": "ENSG1"},
        "symbols": {"A": "ENSG1", "NA": "ENSG2", '"quoted"': "ENSG2"},
    }
    return Vocabulary(**(values | changes))  # type: ignore[arg-type]


def test_files_hold_everything_to_the_last_bit(tmp_path: Path) -> None:
    written = make()
    written.save(tmp_path)
    found = Vocabulary.read(tmp_path, special_tokens=SPECIALS)
    np.testing.assert_array_equal(found.genes, written.genes)
    np.testing.assert_array_equal(found.tokens, written.tokens)
    np.testing.assert_array_equal(found.medians, written.medians)
    assert dict(found.mapping) == dict(written.mapping)
    assert dict(found.symbols) == dict(written.symbols)
    assert found.size == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"medians": np.array([1.0])}, "2 genes, 2 tokens and 1 medians"),
        ({"tokens": np.array([3, 2], dtype=np.int32)}, "must increase"),
        ({"tokens": np.array([1, 2], dtype=np.int32)}, "used for a gene and for a special token"),
        ({"genes": np.array(["ENSG1", "ENSG1"])}, "unique"),
        ({"medians": np.array([1.0, 0.0])}, "not positive numbers, the first for ENSG2"),
        ({"medians": np.array([np.nan, 1.0])}, "not positive numbers, the first for ENSG1"),
    ],
)
def test_what_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**changes)


def test_a_file_without_its_columns(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.tsv").write_text("gene\ttoken\nENSG1\t2\n")
    with pytest.raises(ValueError, match="lacks the column"):
        Vocabulary.read(tmp_path, special_tokens=SPECIALS)
