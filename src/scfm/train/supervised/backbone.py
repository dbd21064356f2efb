"""The foundation model below a head: which one, how cells are read, what of it is trained."""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from scfm._checks import check_least, is_int
from scfm._warn import warn
from scfm.model import FoundationModel, load
from scfm.model.arguments import Arguments
from scfm.model.registry import families_with
from scfm.train.adapters import LoRA, add_adapters, merge_adapters
from scfm.train.freezing import freeze

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch

    from scfm._types import Compat
    from scfm.model.recipe import RunOptions
    from scfm.model.session import Session
    from scfm.train.supervised.setup import Data, Setup

__all__ = ["Backbone"]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A model that is fine-tuned."""

    base: FoundationModel
    freeze: int | bool | None
    lora: LoRA | None
    dropout: float
    pooling: str | None
    max_tokens: int | None
    compat: Compat | None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str | Path | FoundationModel, lora: LoRA | int | None, **choices: Any) -> Self:
        """Load the model, and check that it can be trained as asked.

        Raises
        ------
        TypeError
            If the family cannot be trained.
        ValueError
            If an argument is out of range.
        """
        base = load(model)
        if not base.implements("published_tensors"):
            families = ", ".join(families_with("published_tensors"))
            msg = (
                f"{base.card.id} is of the family {base.family!r}, which has no layers that can be trained; these have: {families}. "
                "scfm.train.EmbeddingClassifier takes the embeddings of any model."
            )
            raise TypeError(msg)
        if not 0 <= choices["dropout"] < 1:
            msg = f"dropout={choices['dropout']} must be at least 0 and below 1."
            raise ValueError(msg)
        if is_int(lora):
            check_least("lora", lora)
        backbone = cls(base=base, lora=LoRA(rank=lora) if isinstance(lora, int) else lora, **choices)
        if backbone.lora is not None and backbone.freezes:
            msg = f"lora= trains adapters and freezes everything else; leave freeze={backbone.freeze!r} out."
            raise ValueError(msg)
        if backbone.run_options.pooling == "gene":
            msg = "pooling='gene' gives no vector of a cell; choose another one."
            raise ValueError(msg)
        return backbone

    @property
    def freezes(self) -> bool:
        """Whether something is frozen; 0 freezes the vectors of genes."""
        return self.freeze is not None and self.freeze is not False

    def arguments(self, setup: Setup) -> Arguments:
        """How counts are read."""
        return Arguments(
            modality=setup.modality,
            layer=setup.layer,
            use_raw=setup.use_raw,
            gene_key=setup.gene_key,
            pooling=self.pooling,
            hidden_layer=0,
            max_tokens=self.max_tokens,
            compat=self.compat,
            options=self.options,
        )

    @property
    def run_options(self) -> RunOptions:
        """The same, with defaults filled in."""
        arguments = Arguments(
            pooling=self.pooling,
            hidden_layer=0,
            max_tokens=self.max_tokens,
            compat=self.compat,
            options=self.options,
        )
        return arguments.resolved(self.base)

    def session(self, data: Data, setup: Setup) -> AbstractContextManager[Session]:
        """Open the counts and match the genes."""
        return self.base.session(data, self.arguments(setup))

    def training_recipe(self) -> FoundationModel:
        """The model with dropout."""
        recipe = copy(self.base)
        recipe._built = None
        recipe.card = self.base.card.with_(architecture={**self.base.card.architecture, "dropout": self.dropout})
        return recipe

    def network(self, recipe: FoundationModel) -> torch.nn.Module:
        """Its layers with pretrained weights, of which those that are not trained need no gradient."""
        network = recipe.training_network()
        if self.lora is not None:
            add_adapters(network, self.lora)
        elif self.freezes:
            freeze(network, self.freeze)  # type: ignore[arg-type]
        return network

    def tuned(self, network: torch.nn.Module, name: str) -> FoundationModel:
        """A model with the trained weights, which every verb takes."""
        if self.lora is not None:
            network = deepcopy(network)
            merge_adapters(network)
        tensors = {name: one.detach().cpu() for name, one in self.base.published_tensors(network).items()}
        card = self.base.card.with_(id=name, aliases=(), hidden_layer=0, weights_sha256=None, **_UNPUBLISHED)
        pooling = self.run_options.pooling
        return type(self.base)(card.with_(pooling=pooling), self.base.vocabulary, tensors)

    def warn_of_labels(self) -> None:
        """Warn of a base that was fine-tuned before: on cells that it has seen, figures are too good."""
        card = self.base.card
        if card.head:
            warn(
                f"{card.id} was fine-tuned before ({card.head}). If that was on cells of this data, figures on validation and test cells "
                "are too good; train the model that it was made from instead."
            )

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        card = self.base.card
        return {
            "base": {
                "model": card.id,
                "family": self.base.family,
                "revision": card.revision,
                "weights_sha256": card.weights_sha256,
            },
            "freeze": self.freeze,
            "lora": None if self.lora is None else {**asdict(self.lora), "targets": list(self.lora.targets)},
            "dropout": self.dropout,
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            "compat": self.compat,
            "options": dict(self.options),
        }


_UNPUBLISHED: dict[str, Any] = {
    "source": "",
    "source_file": "",
    "revision": None,
    "source_sha256": None,
    "dictionaries": {},
}
"""What belongs to the files that the base was published in."""
