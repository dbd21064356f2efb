"""Which genes of a model a data set has, in a form that can be stored and compared."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scfm.genes.vocabulary import Vocabulary

__all__ = ["Overlap", "overlap", "pack", "panels_in"]


class Overlap(NamedTuple):
    """What the genes of two embeddings have in common."""

    shared: int
    """Genes of the model that both have."""
    ours: int
    """Genes of the one."""
    theirs: int
    """Genes of the other."""

    @property
    def share(self) -> float:
        """Share of the larger panel that both have."""
        return self.shared / max(self.ours, self.theirs, 1)


def pack(tokens: NDArray[np.int32], vocabulary: Vocabulary) -> str:
    """Encode which genes of a model are among the tokens: one bit each in the order of the vocabulary, in base64."""
    return b64encode(np.packbits(np.isin(vocabulary.tokens, tokens)).tobytes()).decode()


def panels_in(genes: Any) -> dict[str, list[NDArray[np.bool_]]]:
    """Decode what :func:`pack` wrote, by the hash of the vocabulary; several arrays if several files were embedded.

    Parameters
    ----------
    genes
        ``params["genes"]`` of an embedding. Anything else gives an empty result.
    """
    if not isinstance(genes, Mapping):
        return {}
    found: dict[str, list[NDArray[np.bool_]]] = {}
    try:
        hashes, packed = (np.atleast_1d(genes.get(name, "")).tolist() for name in ("vocabulary_sha256", "panel"))
        for name, text in zip(hashes * (len(packed) if len(hashes) == 1 else 1), packed, strict=True):
            bits = np.unpackbits(np.frombuffer(b64decode(text, validate=True), np.uint8)).astype(bool)
            found.setdefault(name, []).append(bits)
    except (TypeError, ValueError):  # binascii.Error is a ValueError, too
        return {}
    return {name: panels for name, panels in found.items() if name and panels[0].size}


def overlap(ours: Any, theirs: Any) -> Overlap | None:
    """Compare ``params["genes"]`` of two embeddings; ``None`` if one is missing, or they are from different models.

    If several files were embedded, a gene is shared if all of them have it.
    """
    mine, others = panels_in(ours), panels_in(theirs)
    both = mine.keys() & others.keys()
    if len(mine) != 1 or len(others) != 1 or not both:
        return None
    (here,), (there,) = mine.values(), others.values()
    if len({len(panel) for panel in (*here, *there)}) > 1:
        return None
    shared = np.logical_and.reduce([*here, *there])
    return Overlap(int(shared.sum()), *(max(int(panel.sum()) for panel in panels) for panels in (here, there)))
