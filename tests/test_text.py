"""Words of messages."""

from __future__ import annotations

import pytest

from scfm._text import some


@pytest.mark.parametrize(
    ("names", "n", "expected"),
    [
        ([], 3, ""),
        (["a"], 3, "a"),
        (["a", "b", "c"], 3, "a, b, c"),
        (["a", "b", "c", "d"], 3, "a, b, c and 1 more"),
        (range(10), 2, "0, 1 and 8 more"),
    ],
)
def test_the_first_few(names: list[object], n: int, expected: str) -> None:
    assert some(names, n) == expected
    assert some(iter(names), n) == expected


def test_separator_and_usual_number() -> None:
    assert some("abcdefg", separator="; ") == "a; b; c; d; e and 2 more"
