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
    notebook cell it shows a sentence and a bar.
    """

    gene_key: str
    """Where the gene ids were found: ``"index"`` or a column of ``var``."""
    n_genes: int
    """Genes of the data; features that are counted in :attr:`no_genes` and :attr:`other_species` are none of them."""
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
    no_genes: int = 0
    """Features that are left out because they are no genes: antibodies, peaks, guides, spike-ins."""
    other_species: int = 0
    """Features that are left out because they are of a species that the model does not know."""
    not_shared: int = 0
    """Matched genes that are left out because ``shared_with=`` lacks them."""
    vocabulary_sha256: str = ""
    """Hash of the ids of the model's genes, in the order of their tokens."""
    panel: str = ""
    """Genes of the model that the data have, one bit each in the order of the tokens (:func:`numpy.packbits`), base64."""
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
        routes = ", ".join(f"{n:,} by {name}" for name, n in self._routes if n)
        merged = f", {self.merged:,} of them share the token of another" if self.merged else ""
        left_out = "".join(
            f"; {n:,} {what} left out"
            for n, what in (
                (self.not_shared, "of these genes are not shared and"),
                (self.no_genes, "other features are no genes and"),
                (self.other_species, "other features are not of the model's species and"),
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

    @property
    def _routes(self) -> tuple[tuple[str, int], ...]:
        return (
            ("id", self.by_id),
            ("id without version", self.by_version),
            ("alias", self.by_alias),
            ("symbol", self.by_symbol),
        )


@dataclass(frozen=True)
class GeneMap:
    """Token of every column of a data set (``genes`` → ``encode``)."""

    tokens: NDArray[np.int32]
    """Token of each column, shape ``(n_vars,)``: −1 where the model has none, −2 for a column that is left out, as one
    that is no gene, or for which another one stands."""
    report: MatchReport
    """The numbers."""
    sums: bool = True
    """Whether counts of columns with the same token are added (otherwise each keeps its own token)."""

    def shared(self, panels: Sequence[NDArray[np.bool_]], vocabulary: Vocabulary) -> GeneMap:
        """Leave out the genes that are not in all of several panels of the same vocabulary.

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
            msg = f"No gene is shared: the data have {self.report.n_tokens:,} genes of the model, and what shared_with= names has none of them."
            raise ValueError(msg)
        report = replace(self.report, not_shared=int(lost.sum()), panel=pack(tokens, vocabulary))
        return GeneMap(tokens, report, self.sums)
