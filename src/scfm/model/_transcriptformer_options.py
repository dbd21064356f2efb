"""Options of TranscriptFormer, named and preset as in its own configuration where it has them."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003  (the command line reads the types)
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

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
    filter_outliers: float = 0.0
    """Leave cells out whose total over the genes of the model is this many standard deviations or more from the mean
    of all cells; 0: none. Their rows are NaN."""
    min_expressed_genes: int = 0
    """Leave cells out that express fewer genes of the model. Their rows are NaN."""
    sort_genes: bool = False
    """Same as ``gene_order="expression"``."""
    randomize_genes: bool = False
    """Shuffle the genes of each cell, by ``seed`` and the position of the cell."""
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
            value = getattr(self, name)
            if value is None and name in ("clip_counts", "normalize_to_scale"):
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
                msg = f"{name}={value!r} is out of range: give a number from 0 on."
                raise ValueError(msg)
        if self.clip_counts == 0:
            msg = "clip_counts=0 would cut all counts to nothing; give a positive number, or None for no limit."
            raise ValueError(msg)
        if self.seed != int(self.seed) or self.seed >= 2**63:
            msg = f"seed={self.seed!r} is no integer below 2**63."
            raise ValueError(msg)
        known = ("input", "vocabulary", "expression")
        if self.gene_order not in known:
            msg = f"gene_order={self.gene_order!r} is not known; use one of {', '.join(map(repr, known))}."
            raise ValueError(msg)
        others = {
            "randomize_genes": self.randomize_genes,
            "sort_genes": self.sort_genes and self.gene_order != "expression",
        }
        asked = [name for name, set_ in others.items() if set_]
        if len(asked) > 1 or (asked and self.gene_order != "input"):
            names = [f"gene_order={self.gene_order!r}"] * (self.gene_order != "input") + [
                f"{name}=True" for name in asked
            ]
            msg = f"{' and '.join(names)} ask for different orders of the genes; give one of them."
            raise ValueError(msg)
        if self.pretrained_embedding is not None:
            given = self.pretrained_embedding
            paths = [given] if isinstance(given, str | Path) else list(given)
            if not paths:
                msg = "pretrained_embedding names no file; leave it None for the genes of the checkpoint."
                raise ValueError(msg)
            object.__setattr__(self, "pretrained_embedding", [str(path) for path in paths])

    @property
    def order(self) -> GeneOrder:
        """Order of the genes, in one word."""
        if self.randomize_genes:
            return "random"
        return "expression" if self.sort_genes else cast("GeneOrder", self.gene_order)
