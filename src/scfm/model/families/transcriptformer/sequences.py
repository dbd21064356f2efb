"""What TranscriptFormer and its baseline share: cells as an assay, a start token, and genes with their counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from scfm._settings import settings
from scfm._text import some
from scfm._warn import warn
from scfm.encode import OrderEncoder
from scfm.genes import GeneMap, align, first_of_each, match_column
from scfm.model._base import FoundationModel
from scfm.model.families.transcriptformer.cells import ASSAY, UNKNOWN, Assays, read_assays, without_outliers
from scfm.model.families.transcriptformer.genes import GeneFiles, fingerprints, replaced_genes
from scfm.model.families.transcriptformer.options import TranscriptFormerOptions
from scfm.model.families.transcriptformer.published import TranscriptFormerFolders
from scfm.weights.tensors import sha256

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from scfm.model.published import Published
    from scfm.model.recipe import RunOptions
    from scfm.nn import TranscriptFormerConfig
    from scfm.read import CountSource

__all__ = ["START", "GeneSequences"]

START, PAD = "[START]", "[PAD]"


class GeneSequences(FoundationModel):
    """A model that reads the assay of a cell, a start token, and expressed genes with their counts."""

    config: TranscriptFormerConfig
    poolings: ClassVar[tuple[str, ...]] = ("cell", "gene")
    published: ClassVar[Published | None] = TranscriptFormerFolders()
    options_class = TranscriptFormerOptions
    matchers = (align, match_column)
    upstream_prefers_raw = True
    warns_truncated = (
        "the rest is ignored. Which genes come first depends on the order of var; gene_order='expression' keeps those "
        "with the highest counts."
    )

    gene_files_sha256: str | None = None
    """Hash of the files that the genes come from, where they are not those of the checkpoint."""
    _replaced: tuple[object, GeneSequences] | None = None

    def match(self, var: pd.DataFrame, gene_key: str | None, options: RunOptions) -> GeneMap:
        """Match genes; with ``remove_duplicate_genes`` the first column of a gene stands for it."""
        keep_first = options.family.remove_duplicate_genes
        if options.compat:
            return match_column(var, self.vocabulary, gene_key=gene_key, keep_first=keep_first)
        genes = align(var, self.vocabulary, gene_key=gene_key)
        if not keep_first:
            return genes
        report, removed = genes.report, genes.report.merged
        found = replace(report, matched=report.matched - removed, unmatched=report.unmatched + removed, merged=0)
        return GeneMap(first_of_each(genes.tokens), found)

    @property
    def config_class(self) -> type[TranscriptFormerConfig]:
        """Sizes of the network."""
        from scfm.nn import TranscriptFormerConfig

        return TranscriptFormerConfig

    @property
    def embeds_empty(self) -> bool:
        """A cell without genes still has its start token."""
        return True

    def validate_weights(self) -> None:
        """Compare vocabularies, names and shapes of the weights with the architecture."""
        config = self.config
        if self.card.max_tokens is None or self.card.max_tokens > config.max_genes + 1:
            msg = f"max_tokens is {self.card.max_tokens}, but the network reads up to {config.max_genes} genes and the assay."
            raise ValueError(msg)
        assays = self.card.aux_tokens.get(ASSAY, {})
        missing = [name for name in (START, PAD, "[END]", UNKNOWN) if name not in self.card.special_tokens]
        if missing or UNKNOWN not in assays:
            msg = f"{self.card.id} lacks the special tokens {missing} or an assay {UNKNOWN!r}: convert the model again."
            raise ValueError(msg)
        if not all(0 <= token < config.n_assays for token in assays.values()):
            msg = f"Assay ids of {self.card.id} are not all below {config.n_assays}, the rows of its table."
            raise ValueError(msg)
        super().validate_weights()

    def validate_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare with the published names and shapes."""
        from scfm.nn.transcriptformer import check_published

        check_published(shapes, self.config)

    def max_genes(self, options: RunOptions) -> int:
        """Genes that fit beside the assay."""
        return options.max_tokens - 1

    def with_options(self, options: RunOptions) -> Self:
        """The same model with the genes of other files, if ``pretrained_embedding`` names some."""
        paths = options.family.pretrained_embedding
        if paths is None:
            return self
        key = (paths, fingerprints(paths), options.compat)
        if self._replaced is None or self._replaced[0] != key:
            files = GeneFiles(tuple(Path(path).expanduser() for path in paths))
            other = type(self)(*replaced_genes(self.card, self.tensors, files, upstream=options.compat is not None))
            other.gene_files_sha256 = sha256(*files.paths)
            self._replaced = key, other
        return cast("Self", self._replaced[1])

    def extra_params(self, source: CountSource, options: RunOptions) -> dict[str, Any]:
        """How many cells have an assay that the model does not know."""
        files = {} if self.gene_files_sha256 is None else {"pretrained_embedding_sha256": self.gene_files_sha256}
        return {"n_cells_unknown_assay": int(np.count_nonzero(self._assays(source, options).tokens < 0))} | files

    def encoder(self, source: CountSource, genes: GeneMap, options: RunOptions) -> OrderEncoder:
        """Expressed genes in the order that the options ask for, with their counts."""
        family: TranscriptFormerOptions = options.family
        specials = self.card.special_tokens
        tokens, distinct = genes.tokens, -1
        if not family.filter_to_vocabs:
            distinct = specials[UNKNOWN]
            tokens = np.where(tokens == -1, np.int32(distinct), tokens).astype(np.int32)
        pad = self.vocabulary.special_tokens[PAD]
        assays = self._assays(source, options)
        if assays.unknown:
            known = ", ".join(name for name in self.card.aux_tokens[ASSAY] if name != UNKNOWN)
            warn(
                f"{sum(assays.unknown.values())} of {source.n_obs} cells have an assay in obs[{family.aux_cols!r}] that "
                f"{self.card.id} does not know ({some(map(repr, assays.unknown))}), and are read without one. It knows: {known}."
            )
        return OrderEncoder(
            tokens,
            self.max_genes(options),
            start=specials[START],
            prefix=assays.tokens,
            order=family.order,
            read_last=options.pooling == "gene",
            clip=float(family.clip_counts or 0),
            scale=float(family.normalize_to_scale or 0),
            seed=family.seed,
            distinct=distinct,
            keep_cells=without_outliers(source, tokens, family.filter_outliers),
            min_genes=family.min_expressed_genes,
            pad=pad if pad != specials[PAD] else -1,
            threads=settings.threads,
        )

    def _assays(self, source: CountSource, options: RunOptions) -> Assays:
        known, exact = self.card.aux_tokens[ASSAY], options.compat is not None
        return read_assays(source, options.family.aux_cols, known, self.config.vocab_size, exact=exact)
