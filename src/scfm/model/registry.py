"""Which families of models there are, and the cards of their published weights."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from scfm._checks import typed
from scfm.model._known import import_families, known_cards, known_families
from scfm.weights.card import ModelCard, read_cards

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from scfm.model._base import FoundationModel

__all__ = [
    "card_of",
    "cards",
    "check_offers",
    "families",
    "families_with",
    "family_class",
    "find_card",
    "list_models",
    "register",
    "revised",
]


Model = TypeVar("Model", bound="FoundationModel")


def cards(family: str) -> tuple[ModelCard, ...]:
    """Cards of the models of a family that scfm comes with."""
    return read_cards(Path(__file__).parent / "cards" / f"{family}.toml", family)


@typed
def register(cards: Iterable[ModelCard] = ()):  # type: ignore[no-untyped-def]
    """Class decorator that makes a family of models known.

    A package outside scfm does the same in a module that it names under the entry point group ``scfm.models``.

    Parameters
    ----------
    cards
        Cards of the weights of this family, one per published model.

    Raises
    ------
    TypeError
        If the class does not name its family and its poolings.
    ValueError
        If a family, an id or an alias is already taken by another model, or a card is of another family.
    """
    cards = tuple(cards)

    def add(cls: type[Model]) -> type[Model]:
        missing = [name for name in ("family", "poolings") if not hasattr(cls, name)]
        if missing:
            msg = f"{cls.__qualname__} lacks {' and '.join(missing)}, which every family of models has as attributes."
            raise TypeError(msg)
        foreign = [card for card in cards if card.family != cls.family]
        if foreign:
            msg = f"The card of {foreign[0].id} is of the family {foreign[0].family!r}, and {cls.__qualname__} of {cls.family!r}."
            raise ValueError(msg)
        known = known_families.get(cls.family)
        if known is not None and known.__qualname__ != cls.__qualname__:
            msg = f"The family {cls.family!r} is already taken by {known.__qualname__}."
            raise ValueError(msg)
        names = [(name, card) for card in cards for name in (card.id, *card.aliases)]
        for name, card in names:
            other = _names().get(_normal(name))
            if other is not None and other.id != card.id:
                msg = f"The model name {name!r} is already taken by {other.id}."
                raise ValueError(msg)
        known_families[cls.family] = cls
        known_cards.update({card.id: card for card in cards})
        return cls

    return add


def families() -> dict[str, type[FoundationModel]]:
    """All families by name."""
    import_families()
    return dict(known_families)


def family_class(family: str) -> type[FoundationModel]:
    """Class of a family.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    known = families()
    if family not in known:
        msg = f"family={family!r} is not known; the families are {', '.join(sorted(known))}."
        raise ValueError(msg)
    return known[family]


def families_with(method: str) -> list[str]:
    """Names of the families that have an optional method of :class:`scfm.model.recipe.Recipe`."""
    return sorted(name for name, cls in families().items() if cls.implements(method))


def check_offers(card: ModelCard, method: str, words: str) -> None:
    """Raise a TypeError that lists the families which have an optional method, unless that of the model does.

    ``words`` say what the model lacks, and what the families that follow have.
    """
    if not family_class(card.family).implements(method):
        msg = f"{card.id} {words}: {', '.join(families_with(method))}."
        raise TypeError(msg)


def find_card(name: str) -> ModelCard | None:
    """Card of a registered model by id or alias, in any case; ``None`` if there is none."""
    import_families()
    return _names().get(_normal(name))


def card_of(name: str) -> ModelCard:
    """As :func:`find_card`, but a name that is not known is an error.

    Raises
    ------
    ValueError
        With the closest names.
    """
    card = find_card(name)
    if card is None:
        close = difflib.get_close_matches(_normal(name), list(_names()), n=3, cutoff=0.4)
        ids = list(dict.fromkeys(_names()[match].id for match in close))
        hint = f" Did you mean {' or '.join(map(repr, ids))}?" if ids else ""
        msg = (
            f"{name!r} is neither a model nor a folder that exists.{hint} "
            "scfm.model.list_models() shows all models; a local model is given by the path of its folder."
        )
        raise ValueError(msg)
    return card


def revised(card: ModelCard, revision: str | None) -> ModelCard:
    """The card of another revision of a model, of whose files no hashes and no sizes are known.

    Raises
    ------
    ValueError
        If the model has no revisions, or this cannot be one.
    """
    if revision is None or revision == card.revision:
        return card
    if "://" in card.source:
        msg = f"revision={revision!r}: {card.id} comes from {card.source}, which has no revisions."
        raise ValueError(msg)
    return card.with_(
        id=f"{card.id}@{revision.replace('/', '@')}",
        revision=revision,
        source_sha256=None,
        dictionaries={path: known if ":" in path else "" for path, known in card.dictionaries.items()},
        architecture={},
        special_tokens={},
    )


@typed
def list_models() -> pd.DataFrame:
    """List all models that :func:`scfm.model.load` knows by name.

    Returns
    -------
    A table with the model id as index and the columns family, parameters, layers, features, max_tokens, pooling,
    species, license, paper, source, aliases.

    Examples
    --------
    >>> import scfm
    >>> "scfm-mini" in scfm.model.list_models().index
    True
    """
    import pandas as pd

    import_families()
    rows = [
        {
            "id": card.id,
            "family": card.family,
            "parameters": card.n_parameters,
            "layers": card.architecture.get("n_layers"),
            "features": card.architecture.get("hidden_size"),
            "max_tokens": card.max_tokens,
            "pooling": card.pooling,
            "species": card.species,
            "license": card.license,
            "paper": card.paper,
            "source": card.source,
            "aliases": ", ".join(card.aliases),
        }
        for card in sorted(known_cards.values(), key=lambda card: card.family)  # whatever was imported first
    ]
    return pd.DataFrame(rows).set_index("id")


def _names() -> dict[str, ModelCard]:
    return {_normal(name): card for card in known_cards.values() for name in (card.id, *card.aliases)}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
