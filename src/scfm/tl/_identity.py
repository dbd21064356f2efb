"""What makes a run the same run as an earlier one, which it goes on with."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scfm.run.store import fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scfm.model.session import Session

__all__ = ["differences", "identity_of"]


def identity_of(paths: Sequence[str | Path], session: Session, more: Mapping[str, Any]) -> dict[str, Any]:
    """The cells and the parameters, but not the machine and its versions; as JSON."""
    unlike = ("device", "versions", "files")
    parameters = {name: value for name, value in session.description().items() if name not in unlike} | dict(more)
    sizes = [file.n_obs for file in session.source.files] or [session.source.n_obs]
    files = [fingerprint(path) | {"n_obs": size} for path, size in zip(paths, sizes, strict=True)]
    found: dict[str, Any] = json.loads(json.dumps({"source": files, "parameters": parameters}, default=str))
    return found


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In which parameters two runs differ, such as ``"n_cells was None and is 2"``."""
    old, new = _flat(was), _flat(now)
    return [
        f"{name} was {reprlib.repr(old.get(name))} and is {reprlib.repr(new.get(name))}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters, by names such as ``genes.matched``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
