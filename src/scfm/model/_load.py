"""Find a model by name or path and open it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from scfm._checks import typed
from scfm._text import some
from scfm.genes import Vocabulary
from scfm.genes.vocabulary import vocabulary_files
from scfm.model._base import FoundationModel
from scfm.model._cache import check_cached
from scfm.model._fetch import fetch, fetch_tables
from scfm.model._published_folder import WEIGHTS_FILE, PublishedFolder
from scfm.model.recipe import NO_WEIGHTS
from scfm.model.registry import family_class, find_card
from scfm.read.errors import of_file
from scfm.weights.card import CARD_FILE, ModelCard
from scfm.weights.tensors import check_sha256, open_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scfm.model.published import Dictionaries

__all__ = ["load", "load_recipe"]

logger = logging.getLogger("scfm")


@typed
def load(
    model: str | Path | FoundationModel,
    *,
    family: str | None = None,
    dictionaries: str | Path | Sequence[str | Path] | None = None,
    revision: str | None = None,
) -> FoundationModel:
    """Load a model by name or from a folder; by name it is fetched first, if it is not on this machine.

    Parameters
    ----------
    model
        Id or alias of :func:`scfm.model.list_models`, or the path of a folder that :func:`scfm.model.convert` wrote
        or that holds published weights, also fine-tuned ones (classifiers of cells or genes, adapters of peft), whose
        head is not used. A model that was loaded already is returned as it is.
    family
        Family of published weights; recognised from their ``config.json`` by default.
    dictionaries
        Published gene dictionaries (files, or folders that hold them). By default they are looked for in the folder
        of the weights, its parent, and ``geneformer`` beside it.
    revision
        For a name: another commit, branch or tag of the repository than that of the card.

    Returns
    -------
    The model; its network is built on first use.

    Raises
    ------
    ValueError
        If the name is unknown, a file is damaged, a hash is wrong, or weights and vocabulary do not fit.
    FileNotFoundError
        If the weights or dictionaries are not on this machine, and cannot be fetched.
    OSError
        As :func:`fetch`.

    Examples
    --------
    >>> import scfm
    >>> scfm.model.load("scfm-mini").card.family
    'scfm_mini'
    """
    if isinstance(model, FoundationModel):
        return model
    folder, known = _resolve(model, revision), find_card(str(model))
    family = known.family if known is not None and family is None else family
    if family is not None:
        family_class(family)  # an error of the argument, not of the folder
    with of_file(str(folder)):
        if (folder / CARD_FILE).exists():
            if dictionaries is not None:
                msg = f"{folder} is a converted model and brings its own vocabulary: leave dictionaries= out."
                raise ValueError(msg)
            loaded = _load_converted(folder, family)
        else:
            loaded = PublishedFolder(folder, family).open(dictionaries)
            check_cached(folder, loaded.card.with_(family=loaded.weights_family or loaded.family))
    if loaded.card.head:
        sizes = ", ".join(f"{name}: {some(labels)}" for name, labels in loaded.card.labels.items())
        logger.info("%s is fine-tuned; the head of %s (%s) is not used", loaded.card.id, loaded.card.head, sizes)
    return loaded


@typed
def load_recipe(
    model: str | Path | FoundationModel, dictionaries: str | Path | Sequence[str | Path] | None = None
) -> FoundationModel:
    """Load a model without its weights: enough to match genes, not to compute anything; nothing large is fetched.

    Parameters
    ----------
    model
        As for :func:`load`.
    dictionaries
        Published gene dictionaries (files, or folders that hold them), for a model that is not on this machine.

    Raises
    ------
    ValueError, FileNotFoundError, OSError
        As :func:`load`.

    Examples
    --------
    >>> import scfm
    >>> scfm.model.load_recipe("scfm-mini").vocabulary.species
    'human'
    """
    if isinstance(model, FoundationModel):
        return model
    card = find_card(str(model))
    if card is not None:
        cls = family_class(card.family)
        if dictionaries is not None:
            return cls(card, _published_vocabulary(card, dictionaries), NO_WEIGHTS)
        if card.dictionaries and not cls.local_folder(card).is_dir():
            return cls(card, _published_vocabulary(card, fetch_tables(card)), NO_WEIGHTS)
    folder, family = _resolve(model), None if card is None else card.family
    if (folder / CARD_FILE).exists():
        cls, card = _converted(folder, family)
        return cls(card, _converted_vocabulary(card, folder), NO_WEIGHTS)
    published = PublishedFolder(folder, family)
    return published.cls(*published.read(dictionaries), NO_WEIGHTS)


def _published_vocabulary(card: ModelCard, dictionaries: Dictionaries) -> Vocabulary:
    reader = family_class(card.family).published
    if reader is None:
        msg = (
            f"{card.id} has its vocabulary beside its weights, and no published dictionaries; leave dictionaries= out."
        )
        raise ValueError(msg)
    return reader.read_vocabulary(card, dictionaries)


def _resolve(model: object, revision: str | None = None) -> Path:
    """Folder of a model: a registered name that is on this machine first, then a path, then a name to be fetched."""
    if not isinstance(model, str | Path):
        msg = f"A model is given by its name or its folder, got {type(model).__name__}."
        raise TypeError(msg)
    path = Path(model).expanduser()
    card = find_card(str(model))
    if card is not None and (revision is not None or not path.is_dir()):
        return fetch(card.id, revision=revision)
    if card is not None:
        return fetch(card.id) if family_class(card.family).local_folder(card).is_dir() else path
    if revision is not None:
        msg = f"revision={revision!r} is for a model given by its name, and {str(model)!r} is none."
        raise ValueError(msg)
    if path.is_dir():
        return path
    if path.is_file():
        msg = f"{path} is a file; give the folder that holds the weights and their config (scfm.model.convert unpacks a tar)."
        raise ValueError(msg)
    if path.is_absolute() or path.suffix or len(path.parts) > 1:
        msg = f"There is no folder {path}."
        raise FileNotFoundError(msg)
    return fetch(str(model))  # which names the closest models


def _converted(folder: Path, family: str | None) -> tuple[type[FoundationModel], ModelCard]:
    """Family and card of a converted folder, of which another family may take the weights."""
    card = ModelCard.read(folder)
    cls = family_class(card.family if family is None else family)
    if card.family not in (cls.family, cls.weights_family):
        msg = f"{folder} holds a model of the family {card.family!r}, which {cls.family!r} cannot take."
        raise ValueError(msg)
    return cls, card.with_(family=cls.family)


def _load_converted(folder: Path, family: str | None) -> FoundationModel:
    cls, card = _converted(folder, family)
    weights = folder / WEIGHTS_FILE
    if not weights.exists():
        msg = f"{folder} has a {CARD_FILE} but no {WEIGHTS_FILE}; convert the model again."
        raise FileNotFoundError(msg)
    tensors = open_tensors(weights)
    found = tensors.sha256 = check_sha256(card.weights_sha256, weights)
    model = cls(card.with_(weights_sha256=found), _converted_vocabulary(card, folder), tensors)
    model.validate_weights()
    return model


def _converted_vocabulary(card: ModelCard, folder: Path) -> Vocabulary:
    check_sha256(card.vocabulary_sha256, *vocabulary_files(folder))
    return Vocabulary.read(folder, special_tokens=card.special_tokens, species=card.species)
