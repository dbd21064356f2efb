"""The names under which results are stored, all in one place."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Keys", "PARAMS", "result_keys"]

PARAMS = "params"


class Keys(NamedTuple):
    """Where one result goes."""

    obsm: str
    """Key of the embeddings in ``obsm`` (and of gene embeddings in ``varm``)."""
    uns: str
    """Key of the provenance in ``uns``."""


def result_keys(family: str, key_added: str | None = None) -> Keys:
    """Name the slots as scanpy does: ``X_<family>`` and ``<family>``, or ``key_added`` for both.

    Raises
    ------
    ValueError
        If ``key_added`` is empty or holds a slash, which h5ad and zarr read as a nested group.
    """
    if key_added is None:
        return Keys(f"X_{family}", family)
    if not key_added or "/" in key_added:
        msg = f"key_added={key_added!r} cannot be stored: give a name without '/'."
        raise ValueError(msg)
    return Keys(key_added, key_added)
