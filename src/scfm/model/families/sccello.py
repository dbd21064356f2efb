"""scCello (Yuan et al. 2024, arXiv:2408.12373): a BERT over ranked genes, trained with the Cell Ontology."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scfm.encode import VocabularyDepth
from scfm.genes import align, match_exact
from scfm.model.rank_bert import RankBert
from scfm.model.registry import cards, register
from scfm.weights import ModelCard
from scfm.weights.dictionaries import find_dictionaries, read_vocabulary
from scfm.weights.tensors import shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from scfm.genes import GeneMap, Vocabulary
    from scfm.model.recipe import RunOptions
    from scfm.nn import BertConfig, ScCelloNetwork
    from scfm.read import CountSource

__all__ = ["ASSAYS", "ScCello", "ScCelloOptions"]

CLS = "<cls>"
TAU = 0.01
"""Temperature of the published model."""

ASSAYS = (
    "10x 5' v1",
    "10x 5' v2",
    "10x 3' v1",
    "10x 3' v2",
    "10x 3' v3",
    "10x 3' transcription profiling",
    "10x 5' transcription profiling",
)
"""Assays of the training data, in the order of upstream's ``cell_assay_ids``."""


@dataclass(frozen=True)
class ScCelloOptions:
    """What only scCello takes.

    Parameters
    ----------
    cellxgene_filter
        Leave out cells that were not to be trained on: those whose ``obs["organism"]`` is not ``"Homo sapiens"``, whose
        ``obs["assay"]`` is no 10x assay that upstream lists, or whose ``obs["is_primary_data"]`` is false. Their rows
        are NaN.
    """

    cellxgene_filter: bool = False


@register(cards("sccello"))
class ScCello(RankBert):
    """scCello.

    A cell is ``<cls>`` and up to 2,047 genes, and its embedding is the last hidden state of ``<cls>``;
    ``pooling="cell_cls"`` gives the projection of it that was compared with cell types in training. Upstream's totals
    are those of the model's genes, which does not change the order of genes, so they enter in compat mode only.
    """

    family = "sccello"
    poolings: ClassVar[tuple[str, ...]] = ("cls", "cell_cls", "mean", "gene")
    options_class = ScCelloOptions
    matchers = (align, match_exact)
    upstream_prefers_raw = True
    dropping_options: ClassVar[tuple[str, ...]] = ("cellxgene_filter",)

    @classmethod
    def recognizes(cls, config: Mapping[str, Any]) -> bool:
        """A BERT with scCello's temperature."""
        return config.get("model_type") == "bert" and "tau" in config

    @classmethod
    def read_published(
        cls, folder: Path, config: Mapping[str, Any], dictionaries: str | Path | Sequence[str | Path] | None
    ) -> tuple[ModelCard, Vocabulary]:
        """Read config and dictionaries; ``<cls>`` comes after all that they hold."""
        from scfm.nn import BertConfig

        sizes = BertConfig.from_dict({**config, "type_vocab_size": 1})
        tau = config.get("tau")
        if not isinstance(tau, float) or not 0 < tau < np.inf:
            msg = f"tau must be a positive number, got {tau!r}."
            raise ValueError(msg)
        vocabulary = _vocabulary(folder, dictionaries, sizes.vocab_size)
        card = ModelCard(
            id=folder.resolve().name,
            family=cls.family,
            architecture={**sizes.architecture(), "tau": tau},
            pooling="cls",
            max_tokens=sizes.max_positions,
            special_tokens=dict(vocabulary.special_tokens),
        )
        return card, vocabulary

    @classmethod
    def read_vocabulary(
        cls, card: ModelCard, folder: Path | None, dictionaries: str | Path | Sequence[str | Path] | None
    ) -> Vocabulary:
        """Read the published dictionaries that have as many tokens as the card says."""
        return _vocabulary(folder, dictionaries, card.architecture.get("vocab_size"))

    @property
    def config(self) -> BertConfig:
        """Sizes of the network."""
        from scfm.nn import BertConfig

        known = {field.name for field in fields(BertConfig)}
        return self._config_of({name: size for name, size in self.card.architecture.items() if name in known})

    @property
    def tau(self) -> float:
        """Temperature of the training losses."""
        return float(self.card.architecture.get("tau", TAU))

    def check(self) -> None:
        """Compare vocabulary, names and shapes of the weights with the architecture."""
        from scfm.nn import check_sccello

        if not self.has_cls or self.has_eos:
            msg = f"The vocabulary has the special tokens {list(self.vocabulary.special_tokens)}; scCello needs <cls>, and no <eos>."
            raise ValueError(msg)
        super().check()
        check_sccello(shapes(self.tensors), self.config)

    def depth(self, source: CountSource, genes: GeneMap) -> VocabularyDepth:
        """Totals over the genes of the model."""
        return VocabularyDepth(genes.tokens)

    def kept_cells(self, source: CountSource, options: RunOptions) -> NDArray[np.bool_] | None:
        """Cells that upstream's training data would take, if the option asks for them."""
        if not options.family.cellxgene_filter:
            return None
        columns = ("organism", "assay", "is_primary_data")
        missing = [name for name in columns if name not in source.obs_columns]
        if missing:
            msg = (
                f"cellxgene_filter=True reads the columns {', '.join(columns)} of obs, as files of CELLxGENE have them; "
                f"missing: {', '.join(missing)}. Leave the option out to embed all cells."
            )
            raise KeyError(msg)
        organism, assay, primary = (source.column(name) for name in columns)
        human = organism.astype(str).to_numpy() == "Homo sapiens"
        return human & assay.isin(ASSAYS).to_numpy() & primary.to_numpy(dtype=bool)

    def new_network(self, n_layers: int) -> ScCelloNetwork:
        """The network with the projection of cells, without weights."""
        from scfm.nn import ScCelloNetwork

        return ScCelloNetwork(self.config, n_layers)

    def pool(
        self, network: torch.nn.Module, hidden: torch.Tensor, lengths: NDArray[np.int64], pooling: str
    ) -> torch.Tensor:
        """As for every model, or the projection of ``<cls>``."""
        if pooling == "cell_cls":
            return network.cell_head(hidden)  # type: ignore[operator]
        return super().pool(network, hidden, lengths, pooling)


def _vocabulary(
    folder: Path | None, dictionaries: str | Path | Sequence[str | Path] | None, vocab_size: int | None
) -> Vocabulary:
    rows = None if vocab_size is None else vocab_size - 1
    return read_vocabulary(find_dictionaries(folder, dictionaries, rows), appended=[CLS])
