"""Checks of single values."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003  as in a module whose types are checked
from pathlib import Path  # noqa: TC003
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

from scfm._checks import check_least, entry_of, is_int, typed


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


def test_a_number_that_is_too_low() -> None:
    check_least("n_cells", 1)
    with pytest.raises(ValueError, match="n_cells must be at least 1, got 0"):
        check_least("n_cells", 0)


Kind = Literal["a", "b"]


@typed
def verb(
    path: str | Path,
    *,
    kind: Kind = "a",
    names: Sequence[str] | None = None,
    n: int = 1,
    share: float = 0.5,
    seed: int = 0,
    **options: Any,
) -> str:
    """Do it.

    Examples
    --------
    >>> 1 + 1
    2
    """
    return f"{path} {kind} {names} {n} {share} {seed} {options}"


def test_arguments_that_fit_go_through() -> None:
    assert verb("x", kind="b", names=("a",), n=np.int64(2), share=1, own=object) == (  # type: ignore[arg-type]
        f"x b ('a',) 2 1 0 {{'own': {object}}}"
    )
    assert verb("x", names=np.array(["a"])).startswith("x a ['a']")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"path": 5}, TypeError, "path must be str or Path; got 5"),
        ({"path": ""}, ValueError, "path is an empty text; give a path or a name"),
        ({"kind": "c"}, ValueError, "kind='c' is not known; use 'a' or 'b'"),
        ({"kind": 1}, TypeError, "kind must be 'a' or 'b'; got 1"),
        ({"names": "gene"}, TypeError, "names must be a list of str or None; got 'gene'"),
        ({"names": ["a", 2]}, TypeError, "names must be a list of str or None; got list of int, str"),
        ({"names": {"a": 1}}, TypeError, "names must be a list of str or None; got dict"),
        ({"n": True}, TypeError, "n must be int; got True"),
        ({"n": 2.0}, TypeError, "n must be int; got 2.0"),
        ({"share": "half"}, TypeError, "share must be float; got 'half'"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"path": ...}, TypeError, r"missing 1 required positional argument: 'path'"),
    ],
)
def test_arguments_that_do_not_fit(given: dict[str, Any], error: type[Exception], match: str) -> None:
    arguments = {name: value for name, value in ({"path": "x"} | given).items() if value is not ...}
    with pytest.raises(error, match=match):
        verb(**arguments)


@typed
def several(*names: str) -> int:
    """Count names."""
    return len(names)


def test_each_of_several_arguments() -> None:
    assert (several(), several("a", "b")) == (0, 2)
    with pytest.raises(TypeError, match="names must be a list of str"):
        several("a", 2)  # type: ignore[arg-type]


def test_the_type_error_stands_in_the_docstring() -> None:
    before, _, after = (verb.__doc__ or "").partition("    Raises\n    ------\n    TypeError\n")
    assert before.endswith("Do it.\n\n")
    assert after.lstrip(" ").startswith("If an argument")
    assert "Examples" in after
