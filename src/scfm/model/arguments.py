"""What a verb is asked for, as one object: the only way from the keywords of a call to a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from anndata import AnnData
from mudata import MuData

from scfm._checks import is_int
from scfm.model.recipe import RunOptions
from scfm.read import open_counts

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from scfm._types import Compat, Quantization
    from scfm.model.recipe import Recipe
    from scfm.read import CountSource
    from scfm.run.device import Device

__all__ = ["Arguments", "SharedWith"]

SharedWith: TypeAlias = AnnData | MuData | str | Path | Sequence[AnnData | MuData | str | Path] | None
VERBS_OWN = ("groupby", "key_added", "copy")
"""Arguments of some verbs that no model takes as its options."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The keywords that verbs have in common, as they were given; each as in :func:`scfm.tl.embed`.

    Raises
    ------
    TypeError
        If ``options`` holds an argument of another verb, or a name is not a string.
    """

    modality: str | None = None
    layer: str | None = None
    use_raw: bool | None = None
    gene_key: str | None = None
    pooling: str | None = None
    hidden_layer: int | None = None
    max_tokens: int | None = None
    device: Device | Sequence[Device] | None = None
    dtype: str | torch.dtype | None = None
    compat: Compat | None = None
    quantize: Quantization | None = None
    shared_with: SharedWith = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the family of the model."""

    def __post_init__(self) -> None:
        foreign = [name for name in self.options if name in {*_NAMES, *VERBS_OWN}]
        if foreign:
            msg = f"{foreign[0]!r} is no option of this call; it belongs to scfm.tl.embed."
            raise TypeError(msg)

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> Self:
        """Take keywords apart: those that verbs have in common, and options of the family."""
        common = {name: value for name, value in keywords.items() if name in _NAMES}
        return cls(**common, options={name: value for name, value in keywords.items() if name not in _NAMES})

    def open(self, recipe: Recipe, data: AnnData | MuData | str | Path) -> CountSource:
        """Open the matrix that is asked for: in compat mode, if none is named, the one that upstream reads."""
        named = self.layer is not None or self.use_raw is not None
        upstream = self.compat is not None and not named
        return open_counts(
            data,
            modality=self.modality,
            layer=self.layer,
            use_raw=False if upstream and not recipe.upstream_prefers_raw else self.use_raw,
            prefer_raw=upstream and recipe.upstream_prefers_raw,
        )

    def resolved(self, recipe: Recipe) -> RunOptions:
        """Fill in the defaults of a model.

        Raises
        ------
        TypeError
            If the family does not have one of the options.
        ValueError
            If a value is not known to the model, or out of range.
        """
        card, n_layers = recipe.card, recipe.n_layers
        if self.compat not in (None, "upstream"):
            msg = f"compat={self.compat!r} is not known; use 'upstream' to do as the model's own code does, or None."
            raise ValueError(msg)
        pooling = card.pooling if self.pooling is None else self.pooling
        usable = recipe.usable_poolings
        if pooling not in usable:
            msg = f"pooling={pooling!r} is not known to {card.id}; use one of {', '.join(map(repr, usable))}."
            raise ValueError(msg)
        layer = card.hidden_layer if self.hidden_layer is None else self.hidden_layer
        if not is_int(layer) or not -n_layers <= layer <= 0:
            msg = (
                f"hidden_layer={layer!r} does not exist: 0 is the last of {n_layers} layers, -1 the one before it, "
                f"down to {-n_layers} for the input of the first."
            )
            raise ValueError(msg)
        longest = recipe.vocabulary.size if card.max_tokens is None else card.max_tokens
        tokens = longest if self.max_tokens is None else self.max_tokens
        if card.max_tokens is None and self.max_tokens is not None:
            msg = f"max_tokens={tokens!r} has no meaning here: {card.id} reads all genes of a cell; leave it out."
            raise ValueError(msg)
        if not is_int(tokens) or not 3 <= tokens <= longest:
            msg = f"max_tokens={tokens!r} is out of range: {card.id} takes 3 to {longest} tokens a cell."
            raise ValueError(msg)
        family = recipe.family_options(self.options)
        return RunOptions(pooling, layer, n_layers + layer, tokens, self.compat, family, self.quantize)

    def check_attention(self, recipe: Recipe) -> None:
        """Raise a TypeError for a model without attention, a ValueError for a layer without, as the input of the first one."""
        if not recipe.implements("attention_tiles"):
            msg = f"{recipe.card.id} has no attention."
            raise TypeError(msg)
        n_layers = recipe.n_layers
        if not is_int(self.hidden_layer) or not -n_layers < self.hidden_layer <= 0:
            msg = (
                f"hidden_layer={self.hidden_layer!r} has no attention: 0 is the last of {n_layers} layers, -1 the one before "
                f"it, down to {1 - n_layers} for the first."
            )
            raise ValueError(msg)

    @property
    def chosen_counts(self) -> list[str]:
        """Names of the arguments given that choose among counts or their genes."""
        return [
            name
            for name in ("modality", "layer", "use_raw", "gene_key", "shared_with")
            if getattr(self, name) is not None
        ]


_NAMES = frozenset(one.name for one in fields(Arguments)) - {"options"}
