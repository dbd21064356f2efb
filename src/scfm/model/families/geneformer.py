"""Geneformer (Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9): a BERT over genes ranked by expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scfm.encode import ObsDepth
from scfm.genes import align, match_upstream
from scfm.model.rank_bert import RankBert
from scfm.model.registry import cards, register
from scfm.weights import ModelCard
from scfm.weights.dictionaries import find_dictionaries, read_vocabulary
from scfm.weights.tensors import shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scfm.genes import GeneMap, Vocabulary
    from scfm.read import CountSource

__all__ = ["Geneformer"]


@register(cards("geneformer"))
class Geneformer(RankBert):
    """Geneformer, all published sizes.

    V1 models take up to 2,048 genes and are pooled over all of them; V2 models put ``<cls>`` and ``<eos>`` around up
    to 4,094 genes and are pooled at ``<cls>``. By default embeddings come from the layer before the last, as upstream.
    """

    family = "geneformer"
    poolings: ClassVar[tuple[str, ...]] = ("cls", "mean", "gene")
    matchers = (align, match_upstream)

    @classmethod
    def recognizes(cls, config: Mapping[str, Any]) -> bool:
        """Published folders say ``"model_type": "bert"``, as scCello's do, which have a temperature."""
        return config.get("model_type") == "bert" and "tau" not in config

    @classmethod
    def read_published(
        cls, folder: Path, config: Mapping[str, Any], dictionaries: str | Path | Sequence[str | Path] | None
    ) -> tuple[ModelCard, Vocabulary]:
        """Read config and dictionaries; ``<cls>`` in the dictionary makes it a V2 model."""
        from scfm.nn import BertConfig

        sizes = BertConfig.from_dict(config)
        vocabulary = read_vocabulary(find_dictionaries(folder, dictionaries, sizes.vocab_size))
        card = ModelCard(
            id=folder.resolve().name,
            family=cls.family,
            architecture=sizes.architecture(),
            pooling="cls" if "<cls>" in vocabulary.special_tokens else "mean",
            hidden_layer=-1,
            max_tokens=sizes.max_positions,
            special_tokens=dict(vocabulary.special_tokens),
        )
        return card, vocabulary

    @classmethod
    def read_vocabulary(
        cls, card: ModelCard, folder: Path | None, dictionaries: str | Path | Sequence[str | Path] | None
    ) -> Vocabulary:
        """Read the published dictionaries that have as many tokens as the card says."""
        return read_vocabulary(find_dictionaries(folder, dictionaries, card.architecture.get("vocab_size")))

    def check(self) -> None:
        """Compare vocabulary, names and shapes of the weights with the architecture."""
        from scfm.nn import check_shapes

        if self.has_cls != self.has_eos:
            msg = "The vocabulary has one of <cls> and <eos>; a model has both of them around every cell, or none."
            raise ValueError(msg)
        super().check()
        check_shapes(shapes(self.tensors), self.config)

    def depth(self, source: CountSource, genes: GeneMap) -> ObsDepth:
        """Totals in ``obs["n_counts"]``."""
        if "n_counts" not in source.obs_columns:
            msg = (
                "compat='upstream' takes the total of each cell from obs['n_counts'], which is missing. Add it, over all "
                "genes, or leave compat=None, which needs no totals."
            )
            raise KeyError(msg)
        column = source.column("n_counts")
        totals = column.to_numpy()
        if totals.dtype.kind not in "iuf" or not np.isfinite(totals).all() or (totals < 0).any():
            msg = (
                f"compat='upstream' takes the total of each cell from obs['n_counts'], which holds {column.dtype} values that "
                "are not all finite numbers from 0 on. Correct them, or leave compat=None, which needs no totals."
            )
            raise ValueError(msg)
        return ObsDepth(totals)
