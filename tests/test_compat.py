"""What depends on other packages and on the machine."""

from __future__ import annotations

import pytest

from scfm import _compat


def test_functions_are_compiled_without_a_place_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "_warn_of_no_cache", _compat.cache(_compat._warn_of_no_cache.__wrapped__))
    found: dict[str, object] = {}
    exec(compile("def add(x):\n    return x + 1", "no/such/file.py", "exec"), found)
    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR") as caught:
        kernels = [_compat.kernel()(found["add"]) for _ in range(2)]
    assert len(caught) == 1
    assert [kernel(2) for kernel in kernels] == [3, 3]
