"""Where the tools store their results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anndata import AnnData
from mudata import MuData

from scfm._keys import PARAMS

__all__ = ["check_container", "check_own", "check_writable", "find_target", "target_of"]


def check_container(data: object, verb: str, otherwise: str) -> None:
    """Raise a TypeError unless ``data`` can take results."""
    if not isinstance(data, AnnData | MuData):
        msg = f"{verb} stores its result in an AnnData or MuData object, got {type(data).__name__}. For a file use {otherwise}."
        raise TypeError(msg)


def check_own(uns: Mapping[str, Any], key: str, entry: str) -> None:
    """Raise a ValueError if ``uns[key]`` is there and is no earlier result of the same verb, which would be lost.

    Results of the verb have ``entry`` in their ``params``.
    """
    stored = uns.get(key)
    params = stored.get(PARAMS) if isinstance(stored, Mapping) else None
    if stored is not None and not (isinstance(params, Mapping) and entry in params):
        msg = f"key_added={key!r} would overwrite uns[{key!r}], which holds something else; choose another name."
        raise ValueError(msg)


def target_of(data: AnnData | MuData, modality: str | None) -> AnnData:
    """The AnnData that takes the results."""
    return data[modality] if isinstance(data, MuData) else data


def find_target(data: AnnData | MuData, modality: str | None) -> AnnData | None:
    """As :func:`target_of`, ``None`` where there is no such modality."""
    return data.mod.get(modality) if isinstance(data, MuData) else data


def check_writable(data: AnnData | MuData, modality: str | None, *, copy: bool) -> None:
    """Find out before the long work what anndata would refuse after it."""
    target = find_target(data, modality)
    if target is not None and target.isbacked and (copy or target.is_view):
        what = "copy" if copy else "view"
        msg = (
            f"A {what} of backed data cannot take results. Call .to_memory() on it first, embed the whole backed object, "
            "or get the array with scfm.model.load(model).embed(data)."
        )
        raise ValueError(msg)
