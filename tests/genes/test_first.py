"""The first of several genes of one name."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scfm.genes import first_index, first_of_each


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (["a", "b", "a"], ["a", "b", "c", "a"], [0, 1, -1, 0]),
        (["b", "b", "a", "b"], ["a", "b"], [2, 0]),
        ([], ["a"], [-1]),
        (["a"], [], []),
    ],
)
def test_where_names_stand_first(names: list[str], wanted: list[str], expected: list[int]) -> None:
    assert first_index(pd.Index(names, dtype=object), pd.Index(wanted, dtype=object)).tolist() == expected


def test_only_the_first_column_of_a_token_keeps_it() -> None:
    tokens = first_of_each(np.array([5, -1, 3, 5, -1, 3, 7], dtype=np.int32))
    assert tokens.tolist() == [5, -1, 3, -2, -1, -2, 7]
    assert tokens.dtype == np.int32
