"""How the genes of a data set met those of a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.genes.features import place
from scfm.genes.panel import pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scfm.genes.vocabulary import Vocabulary

__all__ = ["GeneMap", "MatchReport"]

BAR = "display:inline-block;height:0.7em;vertical-align:middle;"


@dataclass(frozen=True, repr=False)
class MatchReport:
    """How the genes of a data set met a vocabulary.

    Returned by :func:`scfm.pp.match_genes`; its numbers end in ``uns[key]["params"]["genes"]``. As the last line of a
    notebook cell it is shown as a sentence and a bar.
    """

    gene_key: str
    """Where the gene ids were found: ``"index"`` or a column of ``var``."""
    n_genes: int
    """Genes of the data, without the features in :attr:`not_genes` and :attr:`other_species`."""
    n_vocabulary: int
    """Genes of the model."""
    matched: int
    """Genes of the data that have a token."""
    unmatched: int
    """Genes of the data that have none; the model does not see them."""
    merged: int
    """Genes of the data beyond the first that meet in one token; their counts are added (kept apart upstream)."""
    by_id: int
    """Matched by an id as it stands in the vocabulary."""
    by_version: int
    """Matched after the version was taken off."""
    by_alias: int
    """Matched through the model's table of other ids."""
    by_symbol: int
    """Matched as a gene symbol."""
    not_genes: int = 0
    """Features that are not genes and are left out: antibodies, peaks, guides, spike-ins."""
    other_species: int = 0
    """Genes that are left out because the model does not know their species."""
    not_shared: int = 0
    """Matched genes that are left out because they are not in ``shared_with``."""
    vocabulary_sha256: str = ""
    """SHA-256 of the gene ids of the model, in the order of their tokens."""
    panel: str = ""
    """Which genes of the model are in the data: one bit each in the order of their tokens, in base64."""
    examples_unmatched: tuple[str, ...] = ()
    """The first few unmatched ids."""

    @property
    def n_tokens(self) -> int:
        """Different tokens that match."""
        return self.matched - self.merged

    def as_dict(self) -> dict[str, Any]:
        """Everything but the examples, as plain values that every AnnData file format can store."""
        values = asdict(self)
        del values["examples_unmatched"]
        return values

    def __str__(self) -> str:
        routes = ", ".join(
            f"{n:,} by {name}"
            for name, n in (
                ("id", self.by_id),
                ("id without version", self.by_version),
                ("alias", self.by_alias),
                ("symbol", self.by_symbol),
            )
            if n
        )
        merged = f", {self.merged:,} of them share the token of another" if self.merged else ""
        left_out = "".join(
            f"; {n:,} {what} and are left out"
            for n, what in (
                (self.not_shared, "of these genes are not shared"),
                (self.not_genes, "other features are not genes"),
                (self.other_species, "other genes are from another species"),
            )
            if n
        )
        return (
            f"{self.matched:,} of {self.n_genes:,} genes in {place(self.gene_key)} match the model "
            f"({routes or 'none'}{merged}); the model knows {self.n_vocabulary:,}{left_out}"
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        used, width = self.matched - self.not_shared, 100 / max(self.n_genes, 1)
        bar = "".join(
            f'<span title="{n:,} {what}" style="{BAR}width:{n * width:.2f}%;background:{color}"></span>'
            for n, what, color in (
                (used, "matched", "#2a7f62"),
                (self.not_shared, "not shared", "#8fbcab"),
                (self.unmatched, "not matched", "#d3d3d3"),
            )
            if n
        )
        examples = f"<br>not matched: {escape(', '.join(self.examples_unmatched))}" if self.examples_unmatched else ""
        return f'<div style="max-width:40em;line-height:1">{bar}</div><div>{escape(str(self))}{examples}</div>'


@dataclass(frozen=True)
class GeneMap:
    """Token of every column of a data set (``genes`` → ``encode``)."""

    tokens: NDArray[np.int32]
    """Token of each column, shape ``(n_vars,)``: −1 where the model has none, −2 for a column that is left out."""
    report: MatchReport
    """The numbers."""
    sums: bool = True
    """Whether counts of columns with the same token are added (otherwise each keeps its own token)."""

    def shared(self, panels: Sequence[NDArray[np.bool_]], vocabulary: Vocabulary) -> GeneMap:
        """Leave out genes that are not in all of the panels.

        Parameters
        ----------
        panels
            Boolean arrays over the genes of the vocabulary; what is longer is ignored.
        vocabulary
            The genes of the model.

        Raises
        ------
        ValueError
            If no gene is left.
        """
        size = len(vocabulary.tokens)
        common = vocabulary.tokens[np.logical_and.reduce([panel[:size] for panel in panels])]
        lost = (self.tokens >= 0) & ~np.isin(self.tokens, common)
        tokens = np.where(lost, np.int32(-2), self.tokens)
        if not (tokens >= 0).any():
            msg = f"No gene is shared: the data have {self.report.n_tokens:,} genes of the model, none of which is in shared_with."
            raise ValueError(msg)
        report = replace(self.report, not_shared=int(lost.sum()), panel=pack(tokens, vocabulary))
        return GeneMap(tokens, report, self.sums)
