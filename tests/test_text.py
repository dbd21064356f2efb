"""Words of messages."""

from __future__ import annotations

import pytest

from scfm._text import masked, some


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host/a?b=1", "https://***@host/a?b=1"),
        ("no s3://key@bucket/x, but a@b", "no s3://***@bucket/x, but a@b"),
        (
            "https://h/x?X-Amz-Credential=a/b&part=2&sig=c&api_key=d'",
            "https://h/x?X-Amz-Credential=***&part=2&sig=***&api_key=***'",
        ),
        ("https://host/a@b", "https://host/a@b"),
    ],
)
def test_secrets_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
