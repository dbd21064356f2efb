"""scCello (Yuan et al. 2024, arXiv:2408.12373): a BERT over ranked genes, trained with the Cell Ontology."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

from scfm.encode import VocabularyDepth
from scfm.genes import align, match_exact
from scfm.model.published import PublishedBert
from scfm.model.rank_bert import RankBert
from scfm.model.recipe import DROPS_CELLS
from scfm.model.registry import cards, register

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from scfm.genes import GeneMap
    from scfm.model.recipe import RunOptions
    from scfm.nn import ScCelloConfig, ScCelloNetwork
    from scfm.read import CountSource
    from scfm.tasks.predict_genes import Predictor

__all__ = ["ASSAYS", "ScCello", "ScCelloOptions"]

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

    cellxgene_filter: bool = field(default=False, metadata=DROPS_CELLS)


class ScCelloFolders(PublishedBert):
    """Published folders are told from Geneformer's by the temperature in their config."""

    def recognizes(self, config: Mapping[str, Any]) -> bool:
        """A BERT with a temperature."""
        return super().recognizes(config) and "tau" in config

    def sizes(self, config: Mapping[str, Any]) -> ScCelloConfig:
        """Sizes of the network, with the temperature and one token type."""
        from scfm.nn import ScCelloConfig

        return ScCelloConfig.from_dict(config)


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
    published = ScCelloFolders("sccello", appended=("<cls>",))
    matchers = (align, match_exact)
    upstream_prefers_raw = True
    initial_architecture = {
        "hidden_size": 256,
        "n_layers": 6,
        "n_heads": 4,
        "intermediate_size": 512,
        "max_positions": 2048,
        "type_vocab_size": 1,
        "tau": 0.01,
        "dropout": 0.02,
    }
    initial_tokens = ("<pad>", "<mask>", "<cls>")

    @property
    def config_class(self) -> type[ScCelloConfig]:
        """Sizes of the network, and the temperature of training."""
        from scfm.nn import ScCelloConfig

        return ScCelloConfig

    @property
    def has_cell_head(self) -> bool:
        """Whether the weights hold the projection of cells, which classifiers that were fine-tuned lack."""
        from scfm.nn import has_cell_head

        return has_cell_head(self.tensors)

    @property
    def usable_poolings(self) -> tuple[str, ...]:
        """As of every model; the projection of cells takes its weights."""
        return tuple(name for name in super().usable_poolings if name != "cell_cls" or self.has_cell_head)

    def validate_weights(self) -> None:
        """As of every BERT, and ``<cls>`` is there."""
        if not self.has_cls or self.has_eos:
            msg = f"The vocabulary has the special tokens {list(self.vocabulary.special_tokens)}; scCello needs <cls>, and no <eos>."
            raise ValueError(msg)
        super().validate_weights()

    def validate_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare with the published names and shapes."""
        from scfm.nn import check_sccello

        check_sccello(shapes, self.config)

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

        return ScCelloNetwork(self.config, n_layers, cell_head=self.has_cell_head)

    def training_network(self) -> ScCelloNetwork:
        """All layers with both projections, new where the weights lack them."""
        from scfm.nn import ScCelloNetwork
        from scfm.nn.sccello import heads_in

        there = heads_in(self.tensors)
        network = ScCelloNetwork(self.config, cell_head=there[0], gene_head=there[1])
        if self.tensors:
            network.load_published(self.tensors)
        network.add_heads()
        return network

    def published_tensors(self, network: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Weights of the encoder and the projections."""
        return network.published()  # type: ignore[operator]

    def predictor(self, options: RunOptions, device: torch.device, dtype: torch.dtype) -> Predictor:
        """Softmax of cosines over the temperature: of projected states and projected word embeddings, as in training."""
        import torch

        from scfm.nn import cell_representation, gene_head

        head, tau = (
            gene_head(self.config, self.tensors).to(device=device, dtype=dtype).eval(),
            cast("ScCelloConfig", self.config).tau,
        )

        def predict(network: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
            words = cast("ScCelloNetwork", network).word_embeddings.weight
            genes, found = (cell_representation(head(x), tau) for x in (words, states))
            return torch.log_softmax(found @ genes.T, dim=-1)

        return predict

    def pool(
        self, network: torch.nn.Module, hidden: torch.Tensor, lengths: NDArray[np.int64], pooling: str
    ) -> torch.Tensor:
        """As for every model, or the projection of ``<cls>``."""
        if pooling == "cell_cls":
            return network.cell_head(hidden)  # type: ignore[operator]
        return super().pool(network, hidden, lengths, pooling)
