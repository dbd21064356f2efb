"""Options of TranscriptFormer, named and preset as in its own configuration where it has them."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003  the command line reads the types of options
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from scfm.model.recipe import DROPS_CELLS

if TYPE_CHECKING:
    from scfm.encode import GeneOrder

__all__ = ["TranscriptFormerOptions"]


@dataclass(frozen=True)
class TranscriptFormerOptions:
    """Options of the families transcriptformer and esm2ce.

    Raises
    ------
    ValueError
        If a number is out of range, or two options ask for different orders of the genes.
    """

    clip_counts: float | None = 30
    """Largest count; larger ones are cut to it. ``None``: no limit."""
    normalize_to_scale: float | None = 0
    """Sum to which the counts of the genes that a cell keeps are scaled before they are cut; 0 or None: as they are."""
    filter_to_vocabs: bool = True
    """Leave genes out that the model does not know; ``False`` gives them the token of an unknown gene."""
    filter_outliers: float = field(default=0.0, metadata=DROPS_CELLS)
    """Leave cells out whose total over the genes of the model is this many standard deviations or more from the mean
    of all cells; 0: none. Their rows are NaN."""
    min_expressed_genes: int = field(default=0, metadata=DROPS_CELLS)
    """Leave cells out that express fewer genes of the model. Their rows are NaN."""
    sort_genes: bool = False
    """Same as ``gene_order="expression"``."""
    randomize_genes: bool = False
    """Shuffle the genes of each cell, by ``seed`` and the genes and counts of the cell."""
    gene_order: Literal["input", "vocabulary", "expression"] = "input"
    """Order in which a cell is read: that of ``var``, that of the vocabulary (which does not depend on the file), or
    from the highest count down, ties by vocabulary."""
    seed: int = 0
    """Seed of ``randomize_genes``."""
    remove_duplicate_genes: bool = False
    """Of several columns of one gene keep the first; by default their counts are added up."""
    aux_cols: str = "assay"
    """Column of ``obs`` with the assay, in the words of CELLxGENE; cells of another or no assay are read without."""
    pretrained_embedding: str | Path | Sequence[str | Path] | None = None
    """One or several files of gene vectors (``.h5``) that replace those of the checkpoint, for other species."""

    def __post_init__(self) -> None:
        for name in ("clip_counts", "normalize_to_scale", "filter_outliers", "min_expressed_genes", "seed"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if self.clip_counts == 0:
            msg = "clip_counts=0 would cut all counts to nothing; give a positive number, or None for no limit."
            raise ValueError(msg)
        if self.seed >= 2**63:
            msg = f"seed={self.seed!r} is not below 2**63."
            raise ValueError(msg)
        self._check_order()
        if self.pretrained_embedding is not None:
            object.__setattr__(self, "pretrained_embedding", _paths(self.pretrained_embedding))

    def _check_order(self) -> None:
        sorts = self.sort_genes and self.gene_order != "expression"
        asked = ["randomize_genes=True"] * self.randomize_genes + ["sort_genes=True"] * sorts
        if self.gene_order != "input":
            asked.insert(0, f"gene_order={self.gene_order!r}")
        if len(asked) > 1:
            msg = f"{' and '.join(asked)} ask for different orders of the genes; give one of them."
            raise ValueError(msg)

    @property
    def order(self) -> GeneOrder:
        """Order of the genes, in one word."""
        if self.randomize_genes:
            return "random"
        return "expression" if self.sort_genes else cast("GeneOrder", self.gene_order)


def _number(name: str, value: Any) -> float | None:
    """A number as Python's own, whole ones as int."""
    if value is None:
        return None
    if not 0 <= float(value) < float("inf"):
        msg = f"{name}={value!r} is out of range: give a number from 0 on."
        raise ValueError(msg)
    number = float(value)
    return int(value) if number.is_integer() else number


def _paths(given: str | Path | Sequence[str | Path]) -> list[str]:
    found = [given] if isinstance(given, str | Path) else given
    if not found:
        msg = "pretrained_embedding names no file; leave it None for the genes of the checkpoint."
        raise ValueError(msg)
    return [str(path) for path in found]
