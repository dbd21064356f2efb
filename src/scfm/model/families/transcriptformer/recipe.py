"""TranscriptFormer (Pearce et al. 2025, doi:10.1101/2025.04.25.650731): a causal transformer over genes and counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from scfm._settings import settings
from scfm.encode import OrderEncoder
from scfm.genes import GeneMap, Vocabulary, align, first_of_each, match_column
from scfm.model._base import FoundationModel
from scfm.model.families.transcriptformer.gene_files import (
    GeneFiles,
    files_of,
    fingerprints,
    published_vocabulary,
    replaced_genes,
)
from scfm.model.families.transcriptformer.options import TranscriptFormerOptions
from scfm.model.families.transcriptformer.score import Scorer
from scfm.model.registry import cards, register
from scfm.weights import ModelCard
from scfm.weights.tensors import sha256, shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from scfm._types import CountBlock, TokenBatch
    from scfm.model.recipe import RunOptions
    from scfm.nn import TranscriptFormerConfig
    from scfm.read import CountSource

__all__ = ["TranscriptFormer"]

START, PAD, UNKNOWN, ASSAY = "[START]", "[PAD]", "unknown", "assay"


@register(cards("transcriptformer"))
class TranscriptFormer(FoundationModel):
    """TranscriptFormer, all published checkpoints.

    A cell is its assay, a start token, and up to 2,047 expressed genes with their counts. The embedding of a cell is
    the sum of the states of the start token and all genes but the last possible one, over 2,047.
    """

    family = "transcriptformer"
    poolings: ClassVar[tuple[str, ...]] = ("cell", "gene")
    options_class = TranscriptFormerOptions
    matchers = (align, match_column)
    upstream_prefers_raw = True
    pads = False
    has_scores = True
    dropping_options = ("filter_outliers", "min_expressed_genes")
    warns_truncated = (
        "of the rest nothing is seen. Which genes come first is up to the order of var; gene_order='expression' keeps "
        "the highest."
    )

    gene_files_sha256: str | None = None
    """Hash of the files that the genes come from, where they are not those of the checkpoint."""
    _replaced: tuple[object, TranscriptFormer] | None = None

    @classmethod
    def recognizes(cls, config: Mapping[str, Any]) -> bool:
        """Published files have a section ``model.model_config``."""
        model = config.get("model")
        return isinstance(model, dict) and "model_config" in model

    @classmethod
    def read_published(
        cls, folder: Path, config: Mapping[str, Any], dictionaries: str | Path | Sequence[str | Path] | None
    ) -> tuple[ModelCard, Vocabulary]:
        """Read config, gene names and assays; the sizes that the config lacks are those of the vocabularies."""
        from scfm.nn import TranscriptFormerConfig

        found = published_vocabulary(folder, config, dictionaries)
        sizes = TranscriptFormerConfig.from_dict(
            config,
            vocab_size=found.vocabulary.size,
            n_assays=max(found.assays.values()) + 1,
            gene_vector_size=found.gene_vector_size,
        )
        card = ModelCard(
            id=folder.resolve().name,
            family=cls.family,
            architecture=sizes.architecture(),
            pooling="cell",
            max_tokens=sizes.max_genes + 1,
            special_tokens=dict(found.vocabulary.special_tokens),
            aux_tokens={ASSAY: found.assays},
        )
        return card, found.vocabulary

    @classmethod
    def read_vocabulary(
        cls, card: ModelCard, folder: Path | None, dictionaries: str | Path | Sequence[str | Path] | None
    ) -> Vocabulary:
        """Read the gene names of a registered model from its gene files."""
        files = files_of(folder, None, dictionaries)
        return Vocabulary.of_names(files.names(), card.special_tokens, species=card.species)

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
    def config(self) -> TranscriptFormerConfig:
        """Sizes of the network."""
        from scfm.nn import TranscriptFormerConfig

        try:
            return TranscriptFormerConfig(**self.card.architecture)
        except TypeError as error:
            msg = f"The architecture of {self.card.id} is none of a TranscriptFormer ({error}); convert it again."
            raise ValueError(msg) from error

    @property
    def embeds_empty(self) -> bool:
        """A cell without genes still has its start token."""
        return True

    def check(self) -> None:
        """Compare vocabularies, names and shapes of the weights with the architecture."""
        from scfm.nn.transcriptformer import check_published

        config, size = self.config, self.vocabulary.size
        if self.card.max_tokens > config.max_genes + 1:
            msg = f"max_tokens is {self.card.max_tokens}, but the network reads up to {config.max_genes} genes and the assay."
            raise ValueError(msg)
        if size != config.vocab_size:
            msg = f"The vocabulary has {size:,} tokens, the weights {config.vocab_size:,}: they do not belong together."
            raise ValueError(msg)
        assays = self.card.aux_tokens.get(ASSAY, {})
        missing = [name for name in (START, PAD, "[END]", UNKNOWN) if name not in self.card.special_tokens]
        if missing or UNKNOWN not in assays:
            msg = f"{self.card.id} lacks the special tokens {missing} or an assay {UNKNOWN!r}: convert the model again."
            raise ValueError(msg)
        if not all(0 <= token < config.n_assays for token in assays.values()):
            msg = f"Assay ids of {self.card.id} are not all below {config.n_assays}, the rows of its table."
            raise ValueError(msg)
        check_published(shapes(self.tensors), config)

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

    def facts(self, source: CountSource, options: RunOptions) -> dict[str, Any]:
        """How many cells have an assay that the model does not know."""
        unknown = int(np.count_nonzero(self._assay_tokens(source, options) < 0))
        files = {} if self.gene_files_sha256 is None else {"pretrained_embedding_sha256": self.gene_files_sha256}
        return {"n_cells_unknown_assay": unknown} | files

    def build_encoder(self, source: CountSource, genes: GeneMap, options: RunOptions) -> OrderEncoder:
        """Expressed genes in the order that the options ask for, with their counts."""
        family: TranscriptFormerOptions = options.family
        specials = self.card.special_tokens
        tokens, distinct = genes.tokens, -1
        if not family.filter_to_vocabs:
            distinct = specials[UNKNOWN]
            tokens = np.where(tokens == -1, np.int32(distinct), tokens).astype(np.int32)
        pad = self.vocabulary.special_tokens[PAD]
        return OrderEncoder(
            tokens,
            self.max_genes(options),
            start=specials[START],
            prefix=self._assay_tokens(source, options),
            order=family.order,
            read_last=options.pooling == "gene",
            clip=float(family.clip_counts or 0),
            scale=float(family.normalize_to_scale or 0),
            seed=family.seed,
            distinct=distinct,
            keep_cells=_without_outliers(source, tokens, family.filter_outliers),
            min_genes=family.min_expressed_genes,
            pad=pad if pad != specials[PAD] else -1,
            threads=settings.threads,
        )

    def build_network(self, n_layers: int) -> torch.nn.Module:
        """The first layers only, without heads."""
        import torch

        from scfm.nn import TranscriptFormer as Network

        with torch.device("meta"):
            network = Network(self.config, n_layers)
        network.load_published(self.tensors)
        return network

    def forward(self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions) -> torch.Tensor:
        """Run the layers and pool; in compat mode the state *before* a gene stands for the gene, as upstream."""
        import torch

        from scfm.nn import pool_sum

        assert batch.counts is not None
        tokens, counts = torch.from_numpy(batch.tokens), torch.from_numpy(batch.counts)
        hidden: torch.Tensor = network(tokens, counts, batch.lengths)
        if options.pooling == "gene":
            return torch.roll(hidden, 1, dims=0) if options.compat else hidden
        first = np.concatenate([[0], np.cumsum(batch.lengths)[:-1]])
        return pool_sum(hidden, batch.lengths, batch.tokens[first] >= self.config.vocab_size) / self.config.max_genes

    def scorer(self, options: RunOptions, device: torch.device, dtype: torch.dtype) -> Scorer:
        """Compute log-likelihoods with the heads."""
        return Scorer(self, self.config, options, device, dtype)

    def _assay_tokens(self, source: CountSource, options: RunOptions) -> NDArray[np.int32]:
        """Token of the assay of each cell, −1 where it is not known."""
        column = options.family.aux_cols
        if column not in source.obs_columns:
            if column != ASSAY:
                msg = f"aux_cols={column!r} is not a column of obs; found {source.obs_columns}."
                raise KeyError(msg)
            return np.full(source.n_obs, -1, np.int32)
        assays = self.card.aux_tokens[ASSAY]
        import pandas as pd

        labels = pd.Categorical(source.column(column))
        # a code of −1, for a label that is missing, finds the last entry
        known = [assays.get(label, assays[UNKNOWN]) for label in labels.categories] + [assays[UNKNOWN]]
        tokens = [-1 if code == assays[UNKNOWN] else code + self.config.vocab_size for code in known]
        return np.array(tokens, np.int32)[labels.codes]


def _without_outliers(source: CountSource, tokens: NDArray[np.int32], width: float) -> NDArray[np.bool_] | None:
    """Cells whose total over the genes of the model is within ``width`` standard deviations of the mean."""
    if not width or not source.n_obs:
        return None
    used = tokens >= 0
    totals = np.concatenate([_totals(block, used) for block in source.blocks(settings.block_rows)])
    kept: NDArray[np.bool_] = np.abs(totals - totals.mean()) < width * totals.std()
    return kept


def _totals(block: CountBlock, used: NDArray[np.bool_]) -> NDArray[np.float64]:
    values = np.where(used[block.indices], block.data, 0).astype(np.float64)
    return np.diff(np.concatenate([[0.0], np.cumsum(values)])[block.indptr])
