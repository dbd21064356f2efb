"""Folders of weights as their authors publish them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scfm._paths import read_json
from scfm.model.registry import card_of, families, family_class, find_card, list_models
from scfm.weights.card import CARD_FILE, ModelCard
from scfm.weights.tensors import open_tensors

if TYPE_CHECKING:
    from scfm.genes import Vocabulary
    from scfm.model._base import FoundationModel
    from scfm.model.published import Dictionaries

__all__ = ["PublishedFolder", "WEIGHTS_FILE"]

WEIGHTS_FILE = "model.safetensors"
PUBLISHED_WEIGHTS = (WEIGHTS_FILE, "pytorch_model.bin", "model_weights.pt")


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
        If no family recognises it, or the family has no published folders.
    """

    def __init__(self, folder: Path, family: str | None = None) -> None:
        path = folder / "config.json"
        if not path.exists():
            msg = f"{folder} holds neither {CARD_FILE} (a converted model) nor config.json (published weights)."
            raise FileNotFoundError(msg)
        self.folder = folder
        self.config = read_json(path)
        self.cls = self._recognize() if family is None else family_class(family)
        if self.cls.published is None:
            msg = (
                f"The family {family!r} takes converted folders only, and {folder} holds none ({CARD_FILE}); leave family= "
                "out, or name the family of the published weights."
            )
            raise ValueError(msg)
        self._reader = self.cls.published

    @property
    def weights(self) -> Path:
        """File of the weights."""
        found = [self.folder / name for name in PUBLISHED_WEIGHTS if (self.folder / name).exists()]
        if not found:
            msg = f"{self.folder} holds no weights; expected {' or '.join(PUBLISHED_WEIGHTS)}."
            raise FileNotFoundError(msg)
        return found[0]

    def read(self, dictionaries: Dictionaries) -> tuple[ModelCard, Vocabulary]:
        """Read architecture and vocabulary; the card has no hashes yet."""
        card, vocabulary = self._reader.read(self.folder, self.config, dictionaries)
        return card.with_(family=self.cls.family), vocabulary

    def open(self, dictionaries: Dictionaries, known: ModelCard | None = None) -> FoundationModel:
        """Open the weights with their vocabulary; a model whose hash is registered, or that is known, gets its card."""
        tensors = open_tensors(self.weights)
        card, vocabulary = self.read(dictionaries)
        card = self._identify(card, tensors.sha256) if known is None else _taken_from(card, known)
        card = card.with_(weights_sha256=tensors.sha256)
        model = self.cls(card, vocabulary, tensors)
        model.validate_weights()
        return model

    def _recognize(self) -> type[FoundationModel]:
        readers = {cls: cls.published for cls in families().values() if cls.weights_family is None}
        fitting = [cls for cls, reader in readers.items() if reader is not None and reader.recognizes(self.config)]
        if len(fitting) != 1:
            found = f"model_type={self.config.get('model_type')!r}"
            msg = f"{self.folder / 'config.json'} ({found}) fits {len(fitting)} families; name one of {sorted(families())} as family=."
            raise ValueError(msg)
        return fitting[0]

    def _identify(self, card: ModelCard, found: str) -> ModelCard:
        """Take the card of the registered model with the same hash; a registered name with another hash is an error."""
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
    cards = (card_of(name) for name in list_models().index)
    return [card for card in cards if card.family == family]
