"""Checks of single values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scfm._checks import check_text, entry_of, is_int


@pytest.mark.parametrize("value", [0, -3, np.int64(2), np.uint8(2)])
def test_whole_numbers(value: object) -> None:
    assert is_int(value)


@pytest.mark.parametrize("value", [True, np.True_, 2.0, np.float32(2), "2", None])
def test_no_whole_numbers(value: object) -> None:
    assert not is_int(value)


def test_an_entry_or_those_there_are() -> None:
    assert entry_of({"a": 1}, "a", "obs") == 1
    with pytest.raises(KeyError, match=r"'c' is not in obs; found \['a', 'b'\]"):
        entry_of({"b": 1, "a": 2}, "c", "obs")


def test_columns_of_one_name() -> None:
    table = pd.DataFrame({"a": [1.0, np.nan], "b": [3, 4]})
    pd.testing.assert_series_equal(entry_of(pd.concat([table, table], axis=1), "a", "obs"), table["a"])
    with pytest.raises(ValueError, match="obs has 2 columns named 'a', which differ; rename or drop"):
        entry_of(pd.concat([table, table + 1], axis=1), "a", "obs")


def test_names() -> None:
    check_text("layer", None)
    check_text("layer", "counts")
    with pytest.raises(TypeError, match=r"layer=\['a'\] is a list; pass one name, as a string"):
        check_text("layer", ["a"])
