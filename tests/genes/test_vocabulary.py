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
        "columns": {
            "chromosome": np.array(["1", "02"]),
            "position": np.array([5, 2**40]),
            "mean": np.array([0.1 + 0.2, np.nan]),
        },
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
    assert {name: values.dtype.kind for name, values in found.columns.items()} == {
        "chromosome": "U",
        "position": "i",
        "mean": "f",
    }
    for name, values in written.columns.items():
        np.testing.assert_array_equal(found.columns[name], values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"medians": np.array([1.0])}, "2 genes, 2 tokens and 1 medians"),
        ({"tokens": np.array([3, 2], dtype=np.int32)}, "must increase"),
        ({"tokens": np.array([1, 2], dtype=np.int32)}, "used for a gene and for a special token"),
        ({"genes": np.array(["ENSG1", "ENSG1"])}, "unique"),
        ({"medians": np.array([1.0, 0.0])}, "not positive numbers, the first for ENSG2"),
        ({"medians": np.array([np.nan, 1.0])}, "not positive numbers, the first for ENSG1"),
        ({"columns": {"mean": np.array([1.0])}}, r"'mean' has the shape \(1,\)"),
        ({"columns": {"mean": np.array([True, False])}}, "'mean' has the shape .* and the dtype bool"),
        ({"columns": {"a:b": np.array([1, 2])}}, "its name no colon"),
        ({"columns": {"arm": np.array(["p", "tab\there"])}}, "printable"),
    ],
)
def test_what_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**changes)


def test_a_file_without_its_columns(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.tsv").write_text("gene\ttoken\nENSG1\t2\n")
    with pytest.raises(ValueError, match="lacks the column"):
        Vocabulary.read(tmp_path, special_tokens=SPECIALS)


@pytest.mark.parametrize(
    ("header", "words"), [("mean:complex", "int64, float64, str"), ("mean:int64", "no table of genes")]
)
def test_a_column_of_another_type(tmp_path: Path, header: str, words: str) -> None:
    (tmp_path / "vocabulary.tsv").write_text(f"gene\ttoken\t{header}\tsymbol\nENSG1\t2\t0.5\tA\n")
    with pytest.raises(ValueError, match=words):
        Vocabulary.read(tmp_path, special_tokens=SPECIALS)


def test_a_row_cut_short_after_a_number_that_may_lack(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.tsv").write_text("gene\ttoken\tmean:float64\tsymbol\nENSG1\t2\t0.5\tA\nENSG2\t3\n")
    with pytest.raises(ValueError, match="is no table of genes"):
        Vocabulary.read(tmp_path, special_tokens=SPECIALS)
