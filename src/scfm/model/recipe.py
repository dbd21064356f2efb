"""What the author of a family of models writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import UserDict
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from scfm._checks import check_fields
from scfm._elsewhere import advice
from scfm._settings import settings
from scfm.genes import align
from scfm.run.quantize import quantize_network
from scfm.weights.tensors import shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    import torch

    from scfm._types import Compat, CountBlock, Quantization, TokenBatch, TokenBlock
    from scfm.genes import GeneMap, Vocabulary
    from scfm.model.published import Published
    from scfm.nn import AttentionTile
    from scfm.read import CountSource
    from scfm.tasks import Kind, Perturber, Scorer
    from scfm.tasks.predict_genes import Predictor
    from scfm.weights import ModelCard

    Matcher = Callable[..., GeneMap]

__all__ = ["DROPS_CELLS", "NO_WEIGHTS", "NoOptions", "Recipe", "RunOptions"]

DROPS_CELLS = {"drops_cells": True}
"""Metadata of the field of an option that leaves cells out: ``field(default=0, metadata=DROPS_CELLS)``."""


class _NoWeights(UserDict[str, Any]):
    def __reduce__(self) -> str:
        return "NO_WEIGHTS"


NO_WEIGHTS: Mapping[str, Any] = _NoWeights()
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
    """Tokens of a cell at most; the size of the vocabulary for a model that reads all genes."""
    compat: Compat | None
    family: Any
    """Options of the family."""
    quantize: Quantization | None = None
    """How the weights of the linear layers are kept; ``None``: as they are."""


class Recipe(ABC):
    """A vocabulary, an encoder, a network and a pooling.

    An author names the family and its poolings, and writes :attr:`config_class`, :meth:`encoder`, :meth:`network` and
    :meth:`forward`. Everything else has a default. What a family can do beyond embeddings follows from the methods it has:
    :meth:`scorer` for log-likelihoods, :meth:`masked_outputs` for marker genes, :meth:`perturber` for perturbed genes,
    :meth:`predictor` for predicted genes, :meth:`attention_tiles` for attention, :meth:`rank_frame` for cells that were
    tokenised elsewhere, :meth:`published_tensors` for training.

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
    """Dataclass of the options that only this family takes; those that leave cells out have ``DROPS_CELLS``."""
    published: ClassVar[Published | None] = None
    """Reads the folders in which the authors publish weights; ``None``: there are converted folders only."""
    matchers: ClassVar[tuple[Matcher, Matcher]] = (align, align)
    """How genes are matched, and how in compat mode: from ``var`` and vocabulary to a gene map."""

    upstream_prefers_raw: ClassVar[bool] = False
    """Whether the family's own code takes ``raw`` where there is one (``compat="upstream"``)."""
    context_poolings: ClassVar[tuple[str, ...]] = ("mean",)
    """Poolings that add up the states of genes; a perturbation then compares the genes that were not changed."""
    weights_family: ClassVar[str | None] = None
    """Family whose converted weights this one takes, where it has none of its own."""
    initial_architecture: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Sizes of a new network, where pretraining names no others. A ``gene_vector_size`` is that of the vectors that it is given."""
    initial_tokens: ClassVar[tuple[str, ...]] = ()
    """Special tokens of a new model, in the order of their ids."""
    warns_truncated: ClassVar[str] = ""
    """What a cell with too many genes loses, where that deserves a warning."""

    def __init__(self, card: ModelCard, vocabulary: Vocabulary, tensors: Mapping[str, torch.Tensor]) -> None:
        self.card = card
        self.vocabulary = vocabulary
        self.tensors = tensors
        """Weights by published name; read when they are looked up."""
        self._built: tuple[tuple[Any, ...], list[torch.nn.Module]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy, or a model that is sent to another process, has: everything but the networks, which it builds anew."""
        return self.__dict__ | {"_built": None}

    def __repr__(self) -> str:
        sizes = (self.card.architecture.get(name, "?") for name in ("n_layers", "hidden_size"))
        return f"{type(self).__name__}({self.card.id!r}: {' layers × '.join(map(str, sizes))} features)"

    @classmethod
    def implements(cls, method: str) -> bool:
        """Whether the family has an optional method of its own, as ``"scorer"``."""
        return getattr(cls, method) is not getattr(Recipe, method)

    @classmethod
    def local_folder(cls, card: ModelCard) -> Path:
        """Folder where the converted weights of a registered model are kept on this machine."""
        return settings.cache_dir / "models" / cls.weights_id(card)

    @classmethod
    def weights_id(cls, card: ModelCard) -> str:
        """Id of the model whose weights are used."""
        return card.id

    @property
    @abstractmethod
    def config_class(self) -> type[Any]:
        """Dataclass of the sizes of the network, whose fields are those of ``card.architecture``."""

    @abstractmethod
    def encoder(self, source: CountSource, genes: GeneMap, options: RunOptions) -> Callable[[CountBlock], TokenBlock]:
        """Make the step from counts to tokens."""

    @abstractmethod
    def network(self, n_layers: int) -> torch.nn.Module:
        """Make the network with its first ``n_layers`` layers and load their weights, float32 on the CPU."""

    @abstractmethod
    def forward(self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions) -> torch.Tensor:
        """Compute one batch: a vector per cell, or per token for ``pooling="gene"``."""

    @property
    def config(self) -> Any:
        """Sizes of the network; a ValueError if the card has others than ``config_class``."""
        try:
            return self.config_class(**self.card.architecture)
        except TypeError as error:
            msg = f"The architecture of {self.card.id} is not that of the family {self.family!r} ({error}); convert it again."
            raise ValueError(msg) from error

    def validate_weights(self) -> None:
        """Raise a ValueError if vocabulary, names or shapes of the weights do not fit the card; reads no tensor."""
        size, wanted = self.vocabulary.size, getattr(self.config, "vocab_size", None)
        if wanted not in (None, size):
            msg = f"The vocabulary has {size:,} tokens, the weights {wanted:,}: they do not belong together."
            raise ValueError(msg)
        self.validate_shapes(shapes(self.tensors))

    def validate_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise a ValueError if names or shapes of the weights do not fit the sizes; by default all do."""
        return

    @property
    def n_layers(self) -> int:
        """Layers of the network."""
        return int(self.card.architecture["n_layers"])

    @property
    def n_features(self) -> int:
        """Width of an embedding."""
        return int(self.card.architecture["hidden_size"])

    def with_options(self, options: RunOptions) -> Self:
        """The model that the options ask for: this one, unless an option changes its vocabulary or weights."""
        return self

    def scorer(self, options: RunOptions, device: torch.device, dtype: torch.dtype) -> Scorer:
        """Make the step that computes log-likelihoods, for a family that has them."""
        msg = f"The family {self.family!r} has no likelihood."
        raise TypeError(msg)

    def masked_outputs(
        self,
        network: torch.nn.Module,
        batch: TokenBatch,
        positions: Sequence[torch.Tensor],
        options: RunOptions,
        *,
        max_tokens: int,
    ) -> list[torch.Tensor]:
        """Embed copies of cells in which one token each is masked, for a family that was trained with masked genes.

        Parameters
        ----------
        network, batch, options
            As for :meth:`forward`.
        positions
            For each cell the positions in it that are masked, one in each copy.
        max_tokens
            Tokens of the copies that go through the network together.

        Returns
        -------
        For each cell the embeddings of its copies, shape ``(n_positions, n_features)``.
        """
        msg = f"The family {self.family!r} was not trained with masked genes."
        raise TypeError(msg)

    def perturber(self, kind: Kind, options: RunOptions) -> Perturber:
        """Make the step that changes genes of a cell, for a family that reads how much each of them is expressed.

        Usually ``scfm.tasks.edit_ranks`` or ``scfm.tasks.edit_values`` with some arguments filled in. A ValueError
        if the options do not go with the kind of change.
        """
        msg = f"The family {self.family!r} does not read how much genes are expressed."
        raise TypeError(msg)

    @classmethod
    def new_card(cls, name: str, architecture: Mapping[str, Any], vocabulary: Vocabulary) -> ModelCard:
        """The card of a model that is trained from new weights, for a family that can be trained."""
        msg = f"The family {cls.family!r} cannot be trained."
        raise TypeError(msg)

    def training_network(self) -> torch.nn.Module:
        """All layers, and what only training reads, float32 on the CPU: with new weights where the model has none."""
        msg = f"The family {self.family!r} cannot be trained."
        raise TypeError(msg)

    def training_outputs(
        self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden state of each token, and the embedding of each sequence, with gradients."""
        msg = f"The family {self.family!r} cannot be trained."
        raise TypeError(msg)

    def published_tensors(self, network: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The weights of a network of :meth:`training_network` by published name, without gradients.

        A family that has this method can be trained, and has the other three as well.
        """
        msg = f"The family {self.family!r} cannot be trained."
        raise TypeError(msg)

    def predictor(self, options: RunOptions, device: torch.device, dtype: torch.dtype) -> Predictor:
        """Make the step from hidden states to log-probabilities of all tokens, float32, for a family with a head for it.

        States of the last layer, shape ``(n, n_features)``, are those of masked positions; or, for a family without masks,
        those before the genes that are predicted.
        """
        msg = f"The family {self.family!r} predicts no genes."
        raise TypeError(msg)

    def attention_tiles(
        self, network: torch.nn.Module, batch: TokenBatch, options: RunOptions
    ) -> Iterator[AttentionTile]:
        """Attention weights of the last of the layers, tile by tile, for a family that has attention."""
        msg = f"The family {self.family!r} has no attention."
        raise TypeError(msg)

    def rank_frame(self) -> tuple[int, int]:
        """Tokens before and after the genes of a cell, −1 for none, for a family that reads ranked genes and nothing else."""
        msg = f"The family {self.family!r} does not read ranked genes."
        raise TypeError(msg)

    def match(self, var: pd.DataFrame, gene_key: str | None, options: RunOptions) -> GeneMap:
        """Give every gene of a data set a token, under the options of a run."""
        by_default, upstream = self.matchers
        return (upstream if options.compat else by_default)(var, self.vocabulary, gene_key=gene_key)

    def extra_params(self, source: CountSource, options: RunOptions) -> dict[str, Any]:
        """What else belongs to ``params``."""
        return {}

    def max_genes(self, options: RunOptions) -> int:
        """Genes of a cell that fit into ``max_tokens``."""
        return options.max_tokens

    @property
    def usable_poolings(self) -> tuple[str, ...]:
        """Poolings for which this model has the tokens and weights."""
        return tuple(name for name in self.poolings if name != "cls" or self.has_cls)

    @property
    def has_cls(self) -> bool:
        """Whether every cell, even one without genes, has special tokens."""
        return "<cls>" in self.vocabulary.special_tokens

    @property
    def has_mask(self) -> bool:
        """Whether there is a token that stands for a masked gene."""
        return "<mask>" in self.vocabulary.special_tokens

    @property
    def embeds_empty(self) -> bool:
        """Whether a cell without genes has an embedding."""
        return self.has_cls

    @property
    def dropping_options(self) -> tuple[str, ...]:
        """Options of the family that leave cells out."""
        return tuple(f.name for f in fields(self.options_class) if f.metadata.get("drops_cells"))

    def family_options(self, given: Mapping[str, Any]) -> Any:
        """Options of the family with its defaults; a TypeError for one that it does not have, or of another type."""
        valid = [f.name for f in fields(self.options_class)]
        unknown = [name for name in given if name not in valid]
        if unknown and (advised := advice(unknown[0])):
            msg = f"{unknown[0]!r} is no option of this call: {advised}."
            raise TypeError(msg)
        if unknown:
            takes = f"the options {', '.join(valid)}" if valid else "no options of its own"
            msg = f"{unknown[0]!r} is no option of this call, and the family {self.family!r} takes {takes}."
            raise TypeError(msg)
        check_fields(given, self.options_class)
        return self.options_class(**given)

    def networks(
        self,
        n_layers: int,
        devices: Sequence[torch.device],
        dtype: torch.dtype,
        quantize: Quantization | None = None,
    ) -> list[torch.nn.Module]:
        """The network with its first ``n_layers`` layers on each of the devices; the last ones made are kept."""
        if self.tensors is NO_WEIGHTS:
            msg = f"{self.card.id} was loaded without its weights (load_recipe); load it by scfm.model.load."
            raise ValueError(msg)
        key = (n_layers, tuple(map(str, devices)), dtype, quantize)
        if self._built is None or self._built[0] != key:
            self._built = None  # frees the old ones before the new ones are built
            made = [self.network(n_layers).to(device=device, dtype=dtype).eval() for device in devices]
            if quantize is not None:
                for network in made:
                    quantize_network(network, quantize)
            self._built = key, made
        return self._built[1]
