"""Find a model by name or path and open it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scfm._paths import read_json
from scfm.genes import Vocabulary
from scfm.genes.vocabulary import vocabulary_files
from scfm.model._fetch import fetch, fetch_tables
from scfm.model._registry import card_of, families, family_class, find_card
from scfm.weights.card import CARD_FILE, ModelCard
from scfm.weights.tensors import check_sha256, open_tensors, sha256

if TYPE_CHECKING:
    from scfm.model._base import FoundationModel

__all__ = ["PublishedFolder", "WEIGHTS_FILE", "load", "load_vocabulary"]

WEIGHTS_FILE = "model.safetensors"
PUBLISHED_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model_weights.pt")

Dictionaries = str | Path | Sequence[str | Path] | None


def load(
    model: str | Path,
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
        or that holds published weights.
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
    folder, known = _resolve(model, revision), find_card(str(model))
    family = known.family if known is not None and family is None else family
    if (folder / CARD_FILE).exists():
        if dictionaries is not None:
            msg = f"{folder} is a converted model and brings its own vocabulary: leave dictionaries= out."
            raise ValueError(msg)
        return _load_converted(folder, family)
    return PublishedFolder(folder, family).open(dictionaries)


def load_vocabulary(model: str | Path, dictionaries: Dictionaries = None) -> tuple[type[FoundationModel], Vocabulary]:
    """Load the vocabulary of a model and nothing else.

    Raises
    ------
    ValueError, FileNotFoundError
        As :func:`load`.
    """
    card = find_card(str(model))
    if card is not None and dictionaries is not None:
        cls = family_class(card.family)
        return cls, cls.read_vocabulary(card, None, dictionaries)
    if card is not None and card.dictionaries and not family_class(card.family).local_folder(card).is_dir():
        cls = family_class(card.family)
        return cls, cls.read_vocabulary(card, None, fetch_tables(card))
    folder = _resolve(model)
    if (folder / CARD_FILE).exists():
        card = ModelCard.read(folder)
        return family_class(card.family), _converted_vocabulary(card, folder)
    published = PublishedFolder(folder)
    return published.cls, published.cls.read_published(folder, published.config, dictionaries)[1]


class PublishedFolder:
    """A folder of weights as their authors publish it.

    Parameters
    ----------
    folder
        Folder with ``config.json`` and the weights.
    family
        Family; recognised from ``config.json`` by default.

    Raises
    ------
    FileNotFoundError
        If ``config.json`` is missing.
    ValueError
        If no family recognises it.
    """

    def __init__(self, folder: Path, family: str | None = None) -> None:
        path = folder / "config.json"
        if not path.exists():
            msg = f"{folder} holds neither {CARD_FILE} (a converted model) nor config.json (published weights)."
            raise FileNotFoundError(msg)
        self.folder = folder
        self.config = read_json(path)
        self.cls = self._recognize() if family is None else family_class(family)

    @property
    def weights(self) -> Path:
        """File of the weights."""
        found = [self.folder / name for name in PUBLISHED_WEIGHTS if (self.folder / name).exists()]
        if not found:
            msg = f"{self.folder} holds no weights; expected {' or '.join(PUBLISHED_WEIGHTS)}."
            raise FileNotFoundError(msg)
        return found[0]

    def open(self, dictionaries: Dictionaries, known: ModelCard | None = None) -> FoundationModel:
        """Open the weights with their vocabulary; a model whose hash is registered, or that is known, gets its card."""
        tensors = open_tensors(self.weights)
        card, vocabulary = self.cls.read_published(self.folder, self.config, dictionaries)
        card = card.with_(family=self.cls.family)
        card = self._identify(card) if known is None else _taken_from(card, known)
        card = card.with_(weights_sha256=sha256(self.weights))
        model = self.cls(card, vocabulary, tensors)
        model.check()
        return model

    def _recognize(self) -> type[FoundationModel]:
        fitting = [cls for cls in families().values() if cls.recognizes(self.config)]
        if len(fitting) != 1:
            found = f"model_type={self.config.get('model_type')!r}"
            msg = f"{self.folder / 'config.json'} ({found}) fits {len(fitting)} families; name one of {sorted(families())} as family=."
            raise ValueError(msg)
        return fitting[0]

    def _identify(self, card: ModelCard) -> ModelCard:
        """Take the card of the registered model with the same hash; a registered name with another hash is an error."""
        found = sha256(self.weights)
        for known in _registered(self.cls.family):
            if known.source_sha256 == found:
                return _taken_from(card, known)
        named = find_card(card.id)
        same = named is not None and named.architecture.get("vocab_size") == card.architecture.get("vocab_size")
        if named is not None and same and named.source_sha256 is None and named.family == card.family:
            card = _taken_from(card, named)
        if named is not None and named.source_sha256 is not None and Path(named.source_file).name == self.weights.name:
            msg = (
                f"{self.weights} has sha256 {found}, but {named.id} has {named.source_sha256}: the file is damaged, or "
                "these are other weights; then rename the folder."
            )
            raise ValueError(msg)
        return card


def _taken_from(card: ModelCard, known: ModelCard) -> ModelCard:
    """The card of a known model, with what was read from its files."""
    return known.with_(
        architecture=card.architecture,
        max_tokens=card.max_tokens,
        special_tokens=card.special_tokens,
        aux_tokens=card.aux_tokens,
    )


def _registered(family: str) -> list[ModelCard]:
    from scfm.model._registry import list_models

    cards = (card_of(name) for name in list_models().index)
    return [card for card in cards if card.family == family]


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
        folder = family_class(card.family).local_folder(card)
        return folder if folder.is_dir() else path
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


def _load_converted(folder: Path, family: str | None) -> FoundationModel:
    card = ModelCard.read(folder)
    cls = family_class(card.family if family is None else family)
    if card.family not in (cls.family, cls.weights_family):
        msg = f"{folder} holds a model of the family {card.family!r}, which {cls.family!r} cannot take."
        raise ValueError(msg)
    card = card.with_(family=cls.family)
    weights = folder / WEIGHTS_FILE
    if not weights.exists():
        msg = f"{folder} has a {CARD_FILE} but no {WEIGHTS_FILE}; convert the model again."
        raise FileNotFoundError(msg)
    tensors = open_tensors(weights)
    found = check_sha256(card.weights_sha256, weights)
    model = cls(card.with_(weights_sha256=found), _converted_vocabulary(card, folder), tensors)
    model.check()
    return model


def _converted_vocabulary(card: ModelCard, folder: Path) -> Vocabulary:
    check_sha256(card.vocabulary_sha256, *vocabulary_files(folder))
    return Vocabulary.read(folder, special_tokens=card.special_tokens, species=card.species)
