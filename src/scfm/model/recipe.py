"""What the author of a family of models writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from scfm._settings import settings
from scfm.genes import align

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from scfm._types import Compat, CountBlock, TokenBatch, TokenBlock
    from scfm.genes import GeneMap, Vocabulary
    from scfm.read import CountSource
    from scfm.tasks import Scorer
    from scfm.weights import ModelCard

    Matcher = Callable[..., GeneMap]

__all__ = ["NO_WEIGHTS", "NoOptions", "Recipe", "RunOptions"]

NO_WEIGHTS: Mapping[str, Any] = MappingProxyType({})
"""Stands for the weights of a model that was loaded without them."""


@dataclass(frozen=True)
class NoOptions:
    """Options of a family that has none."""


@dataclass(frozen=True)
class RunOptions:
    """The options of one run, defaults filled in."""

    pooling: str
    hidden_layer: int
    n_layers: int
    """Layers that are computed."""
    max_tokens: int
    compat: Compat | None
    family: Any
    """Options of the family."""


class Recipe(ABC):
    """A vocabulary, an encoder, a network and a pooling.

    Parameters
    ----------
    card
        Description and defaults.
    vocabulary
        Genes and tokens.
    tensors
        Weights by published name; read when the network is built.
    """

    family: ClassVar[str]
    """Name of the family, from which the keys of results are made."""
    poolings: ClassVar[tuple[str, ...]]
    """Poolings that the family knows."""
    options_class: ClassVar[type] = NoOptions
    """Dataclass of the options that only this family takes."""
    matchers: ClassVar[tuple[Matcher, Matcher]] = (align, align)
    """How genes are matched, and how in compat mode: from ``var`` and vocabulary to a gene map."""

    upstream_prefers_raw: ClassVar[bool] = False
    """Whether the family's own code takes ``raw`` where there is one (``compat="upstream"``)."""
    weights_family: ClassVar[str | None] = None
    """Family whose converted weights this one takes, where it has none of its own."""
    pads: ClassVar[bool] = True
    """Whether the network pads batches on an accelerator."""
    dropping_options: ClassVar[tuple[str, ...]] = ()
    """Options of the family that leave cells out."""
    reads_ranks: ClassVar[bool] = False
    """Whether the network reads ranked genes, and nothing else of a cell."""
    has_scores: ClassVar[bool] = False
    """Whether the family has log-likelihoods."""
    warns_truncated: ClassVar[str] = ""
    """What a cell with too many genes loses, where that deserves a warning."""

    def __init__(self, card: ModelCard, vocabulary: Vocabulary, tensors: Mapping[str, torch.Tensor]) -> None:
        self.card = card
        self.vocabulary = vocabulary
        self.tensors = tensors
        """Weights by published name; read when they are looked up."""
        self._built: tuple[tuple[Any, ...], list[torch.nn.Module]] | None = None

    def __repr__(self) -> str:
        sizes = (self.card.architecture.get(name, "?") for name in ("n_layers", "hidden_size"))
        return f"{type(self).__name__}({self.card.id!r}: {' layers × '.join(map(str, sizes))} features)"

    @classmethod
    def local_folder(cls, card: ModelCard) -> Path:
        """Folder where the converted weights of a registered model are kept on this machine."""
        return settings.cache_dir / "models" / cls.weights_id(card)

    @classmethod
    def weights_id(cls, card: ModelCard) -> str:
        """Id of the model whose weights are used."""
        return card.id

    @classmethod
    @abstractmethod
    def recognizes(cls, config: Mapping[str, Any]) -> bool:
        """Whether a published ``config.json`` is one of this family."""

    @classmethod
    @abstractmethod
    def read_published(
        cls, folder: Path, config: Mapping[str, Any], dictionaries: str | Path | Sequence[str | Path] | None
    ) -> tuple[ModelCard, Vocabulary]:
        """Read architecture and vocabulary of a published folder; the card has neither id nor hashes yet."""

    @classmethod
    @abstractmethod
    def read_vocabulary(
        cls, card: ModelCard, folder: Path | None, dictionaries: str | Path | Sequence[str | Path] | None
    ) -> Vocabulary:
        """Read the published vocabulary of a registered model, without any weights."""

    @property
    def n_layers(self) -> int:
        """Layers of the network."""
        return int(self.card.architecture["n_layers"])

    @property
    def n_features(self) -> int:
        """Width of an embedding."""
        return int(self.card.architecture["hidden_size"])

    @abstractmethod
    def build_encoder(
        self, source: CountSource, genes: GeneMap, options: RunOptions
    ) -> Callable[[CountBlock], TokenBlock]:
        """Make the step from counts to tokens."""

    @abstractmethod
    def build_network(self, n_layers: int) -> torch.nn.Module:
        """Make the network with its first ``n_layers`` layers and load their weights, float32 on the CPU."""

    @abstractmethod
    def forward(self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions) -> torch.Tensor:
        """Compute one batch: a vector per cell, or per token for ``pooling="gene"``."""

    @abstractmethod
    def check(self) -> None:
        """Raise a ValueError if names or vocabulary size of the weights do not fit the card; reads no tensor."""

    def with_options(self, options: RunOptions) -> Self:
        """The model that the options ask for: this one, unless an option changes its vocabulary or weights."""
        return self

    def scorer(self, options: RunOptions, device: torch.device, dtype: torch.dtype) -> Scorer:
        """Make the step that computes log-likelihoods, for a family that has them."""
        msg = f"{self.card.id} has no likelihood."
        raise TypeError(msg)

    def masked_outputs(
        self,
        network: torch.nn.Module,
        batch: TokenBatch,
        positions: Sequence[NDArray[np.int64]],
        options: RunOptions,
        max_tokens: int,
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Embed cells, and copies of each in which one token is masked, for a family trained with masked genes.

        Parameters
        ----------
        network
            The network.
        batch
            Cells.
        positions
            Which tokens of each cell are masked, one after the other.
        options
            Options of the run.
        max_tokens
            Tokens that go through the network together.

        Returns
        -------
        embeddings
            Of the cells, shape ``(n_cells, n_features)``.
        masked
            For each cell those of its copies, shape ``(n_positions, n_features)``.
        """
        msg = f"{self.card.id} was not trained with masked genes."
        raise TypeError(msg)

    def match(self, var: pd.DataFrame, gene_key: str | None, options: RunOptions) -> GeneMap:
        """Give every gene of a data set a token, under the options of a run."""
        by_default, upstream = self.matchers
        return (upstream if options.compat else by_default)(var, self.vocabulary, gene_key=gene_key)

    def facts(self, source: CountSource, options: RunOptions) -> dict[str, Any]:
        """What else belongs to ``params``."""
        return {}

    def max_genes(self, options: RunOptions) -> int:
        """Genes of a cell that fit into ``max_tokens``."""
        return options.max_tokens

    @property
    def has_cls(self) -> bool:
        """Whether every cell, even one without genes, has special tokens."""
        return "<cls>" in self.vocabulary.special_tokens

    @property
    def embeds_empty(self) -> bool:
        """Whether a cell without genes has an embedding."""
        return self.has_cls

    def family_options(self, given: Mapping[str, Any]) -> Any:
        """Options of the family with its defaults; a TypeError for one that it does not have."""
        valid = [f.name for f in fields(self.options_class)]
        unknown = [name for name in given if name not in valid]
        if unknown:
            takes = f"the options {', '.join(valid)}" if valid else "no options of its own"
            msg = f"{unknown[0]!r} is no option of this call, and the family {self.family!r} takes {takes}."
            raise TypeError(msg)
        return self.options_class(**given)

    def networks(self, n_layers: int, devices: Sequence[torch.device], dtype: torch.dtype) -> list[torch.nn.Module]:
        """The network with its first ``n_layers`` layers on each of the devices; the last ones made are kept."""
        key = (n_layers, tuple(map(str, devices)), dtype)
        if self._built is None or self._built[0] != key:
            self._built = None  # frees the old ones before the new ones are built
            made = [self.build_network(n_layers).to(device=device, dtype=dtype).eval() for device in devices]
            self._built = key, made
        return self._built[1]
