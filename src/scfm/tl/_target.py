"""Where the tools store their results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anndata import AnnData
from mudata import MuData

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["check_container", "check_options", "check_writable", "target_of"]


def check_container(data: object, verb: str, otherwise: str) -> None:
    """Raise a TypeError unless ``data`` can take results."""
    if not isinstance(data, AnnData | MuData):
        msg = f"{verb} stores its result in an AnnData or MuData object, got {type(data).__name__}. For a file use {otherwise}."
        raise TypeError(msg)


def check_options(options: Mapping[str, object], verb: str, *others: str) -> None:
    """Raise a TypeError for arguments that belong to tl.embed and not to this verb."""
    for name in others:
        if name in options:
            msg = f"{name!r} is no option of {verb}; it belongs to tl.embed."
            raise TypeError(msg)


def target_of(data: AnnData | MuData, modality: str | None) -> AnnData:
    """The AnnData that takes the results."""
    return data[modality] if isinstance(data, MuData) else data


def check_writable(data: AnnData | MuData, modality: str | None, *, copy: bool) -> None:
    """Find out before the long work what anndata would refuse after it."""
    target = data.mod.get(modality) if isinstance(data, MuData) else data
    if target is not None and target.isbacked and (copy or target.is_view):
        what = "copy" if copy else "view"
        msg = (
            f"A {what} of backed data cannot take results. Call .to_memory() on it first, embed the whole backed object, "
            "or get the array with scfm.model.load(model).embed(data)."
        )
        raise ValueError(msg)
