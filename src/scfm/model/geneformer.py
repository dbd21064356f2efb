"""Geneformer (Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9): a BERT over genes ranked by expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scfm.encode import ObsDepth
from scfm.genes import align, match_upstream
from scfm.model._rank_bert import RankBert
from scfm.model.registry import register
from scfm.weights import ModelCard
from scfm.weights.dictionaries import find_dictionaries, read_vocabulary
from scfm.weights.tensors import shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scfm.genes import GeneMap, Vocabulary
    from scfm.read import CountSource

__all__ = ["Geneformer"]

REPOSITORY = "ctheodoris/Geneformer"
REVISION = "05fcbeb8a27d49e0a7a4349152202ee2c1cbfd28"
REMOVED_REVISION = "31bf641d0f173a18a5e06d9a6574bb0d3fe5edc1"
V1_PAPER = "10.1038/s41586-023-06139-9"
V2_PAPER = "10.1101/2024.08.16.608180"

V1_TABLES = {
    "token_dictionary_gc30M.pkl": "ab9dc40973fa5224d77b793e2fd114cacf3d08423ed9c4c49caf0ba9c7f218f1",
    "gene_median_dictionary_gc30M.pkl": "b3b589bb5ec75040d05fc44dd6bf0184cf87f3c362cf158d196a6ed3b7fe5f39",
    "ensembl_mapping_dict_gc30M.pkl": "eac0fb0b3007267871b6305ac0003ceba19d4f28d85686cb9067ecf142787869",
    "gene_name_id_dict_gc30M.pkl": "55e67962e79c0039a6c32d43c5c99f38e51964bbcfa32f736150ee1e285c438c",
}
_V2_TABLES = {
    "token_dictionary_gc104M.pkl": "67c445f4385127adfc48dcc072320cd65d6822829bf27dd38070e6e787bc597f",
    "gene_median_dictionary_gc104M.pkl": "a51c53f6a771d64508dfaf61529df70e394c53bd20856926117ae5d641a24bf5",
    "ensembl_mapping_dict_gc104M.pkl": "0819bcbd869cfa14279449b037eb9ed1d09a91310e77bd1a19d927465030e95c",
    "gene_name_id_dict_gc104M.pkl": "fabfa0c2f49c598c59ae432a32c3499a5908c033756c663b5e0cddf58deea8e1",
}


def _card(
    model_id: str,
    version: int,
    sizes: tuple[int, int, int, int],
    *,
    file: str,
    sha256: str,
    n_parameters: int,
    description: str,
    aliases: tuple[str, ...],
    revision: str = REVISION,
) -> ModelCard:
    """Card of a published model; sizes are layers, hidden size, heads and feed-forward width."""
    first = version == 1
    max_tokens = 4096 if "i4096" in file or not first else 2048
    folder = "geneformer/gene_dictionaries_30m/" if first else "geneformer/"
    architecture = {
        "vocab_size": 25_426 if first else 20_275,
        **dict(zip(("n_layers", "hidden_size", "n_heads", "intermediate_size"), sizes, strict=True)),
        "max_positions": max_tokens,
    }
    specials = ("<pad>", "<mask>") if first else ("<pad>", "<mask>", "<cls>", "<eos>")
    return ModelCard(
        id=model_id,
        family="geneformer",
        architecture=architecture,
        pooling="mean" if first else "cls",
        hidden_layer=-1,
        max_tokens=max_tokens,
        special_tokens={name: token for token, name in enumerate(specials)},
        aliases=aliases,
        source=REPOSITORY,
        source_file=file,
        revision=revision,
        source_sha256=sha256,
        dictionaries={folder + name: sha for name, sha in (V1_TABLES if first else _V2_TABLES).items()},
        license="Apache-2.0",
        paper=V1_PAPER if first else V2_PAPER,
        description=description,
        n_parameters=n_parameters,
    )


CARDS = (
    _card(
        "geneformer-v1-10m",
        1,
        (6, 256, 4, 512),
        file="Geneformer-V1-10M/model.safetensors",
        sha256="a5e33a757431643b3697de7ef6127950cdc49e06e58d4266b3a3ab191b683f14",
        n_parameters=10_288_722,
        description="27 million human cells (Genecorpus-30M), June 2021",
        aliases=("GF-6L-30M-i2048", "gf-6L-10M-i2048"),
    ),
    _card(
        "geneformer-v2-104m",
        2,
        (12, 768, 12, 3072),
        file="Geneformer-V2-104M/model.safetensors",
        sha256="fff5cba29ddd8792991fa77b4872246fbe548a178cebda3775cdc72b67780e7f",
        n_parameters=104_386_867,
        description="104 million human cells, no cancer, December 2024",
        aliases=("gf-12L-104M-i4096",),
    ),
    _card(
        "geneformer-v2-104m-clcancer",
        2,
        (12, 768, 12, 3072),
        file="Geneformer-V2-104M_CLcancer/model.safetensors",
        sha256="827738139bfed4bafa9d1f3df7c6146da2e3b85f7225076adc32c6eda0ba4357",
        n_parameters=104_386_867,
        description="geneformer-v2-104m, trained on with 14 million cells of cancer samples",
        aliases=("gf-12L-104M-i4096-CLcancer",),
    ),
    _card(
        "geneformer-v2-316m",
        2,
        (18, 1152, 18, 4608),
        file="Geneformer-V2-316M/model.safetensors",
        sha256="965ceccea81953d362081ef3843560a0e4fef88d396c28017881f1e94b1246f3",
        n_parameters=316_354_867,
        description="104 million human cells, no cancer, December 2024",
        aliases=("gf-18L-316M-i4096",),
    ),
    _card(
        "geneformer-12l-30m",
        1,
        (12, 512, 8, 1024),
        file="gf-12L-30M-i2048/pytorch_model.bin",
        sha256="812f8d85e5ecf9d64c268f052f6ece2c1906bc4f1aecf70d5144b2598386b615",
        n_parameters=39_591_250,
        description="27 million human cells (Genecorpus-30M), June 2021; no longer published",
        aliases=("GF-12L-30M-i2048", "gf-12L-40M-i2048"),
        revision=REMOVED_REVISION,
    ),
    _card(
        "geneformer-12l-95m",
        2,
        (12, 512, 8, 1024),
        file="gf-12L-95M-i4096/model.safetensors",
        sha256="4365ba23e393fcfa0e65a94ac64a0983cd788bd23a8d4914f4ab66f85cfe043c",
        n_parameters=37_997_363,
        description="95 million human cells, no cancer, April 2024; no longer published",
        aliases=("GF-12L-95M-i4096", "gf-12L-38M-i4096"),
        revision=REMOVED_REVISION,
    ),
    _card(
        "geneformer-12l-95m-clcancer",
        2,
        (12, 512, 8, 1024),
        file="gf-12L-95M-i4096_CLcancer/model.safetensors",
        sha256="2451adeed240c165634fea60ccba17063da8a2843ea9fcdcc0ce185720bf0dc2",
        n_parameters=37_997_363,
        description="geneformer-12l-95m, trained on with 14 million cells of cancer samples; no longer published",
        aliases=("GF-12L-95M-i4096-CLcancer", "gf-12L-38M-i4096-CLcancer"),
        revision=REMOVED_REVISION,
    ),
    _card(
        "geneformer-20l-95m",
        2,
        (20, 896, 14, 1792),
        file="gf-20L-95M-i4096/model.safetensors",
        sha256="db85c081a6d392448955c7d0185e26aba74507518df991ca8c69ee9108ce8bbf",
        n_parameters=151_313_459,
        description="95 million human cells, no cancer, April 2024; no longer published",
        aliases=("GF-20L-95M-i4096", "gf-20L-151M-i4096"),
        revision=REMOVED_REVISION,
    ),
)


@register(CARDS)
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
