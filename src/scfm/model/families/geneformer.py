"""Geneformer (Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9): a BERT over genes ranked by expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scfm.encode import ObsDepth
from scfm.genes import align, match_upstream
from scfm.model.published import PublishedBert
from scfm.model.rank_bert import RankBert
from scfm.model.registry import cards, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scfm.genes import GeneMap
    from scfm.model.published import Published
    from scfm.read import CountSource

__all__ = ["Geneformer"]


class GeneformerFolders(PublishedBert):
    """Published folders say ``"model_type": "bert"``, as scCello's do, which have a temperature."""

    def recognizes(self, config: Mapping[str, Any]) -> bool:
        """A BERT without temperature."""
        return super().recognizes(config) and "tau" not in config


@register(cards("geneformer"))
class Geneformer(RankBert):
    """Geneformer, all published sizes.

    V1 models take up to 2,048 genes and are pooled over all of them; V2 models put ``<cls>`` and ``<eos>`` around up
    to 4,094 genes and are pooled at ``<cls>``. By default embeddings come from the layer before the last, as upstream.
    """

    family = "geneformer"
    poolings: ClassVar[tuple[str, ...]] = ("cls", "mean", "gene")
    published: ClassVar[Published | None] = GeneformerFolders("geneformer", hidden_layer=-1)
    matchers = (align, match_upstream)
    initial_architecture = {
        "hidden_size": 256,
        "n_layers": 6,
        "n_heads": 4,
        "intermediate_size": 512,
        "max_positions": 2048,
    }
    initial_tokens: ClassVar[tuple[str, ...]] = ("<pad>", "<mask>", "<cls>", "<eos>")

    def validate_weights(self) -> None:
        """As of every BERT, and ``<cls>`` and ``<eos>`` come together."""
        if self.has_cls != self.has_eos:
            msg = "The vocabulary has one of <cls> and <eos>; a model has both of them around every cell, or none."
            raise ValueError(msg)
        super().validate_weights()

    def validate_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare with the published names and shapes."""
        from scfm.nn import check_shapes

        check_shapes(shapes, self.config)

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
