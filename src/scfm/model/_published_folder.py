"""Folders of weights as their authors publish them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfm._paths import read_json
from scfm.model._known import import_families, known_cards
from scfm.model.registry import families, family_class, find_card
from scfm.weights.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from scfm.weights.card import CARD_FILE, ModelCard
from scfm.weights.tensors import open_tensors, sha256

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from scfm.genes import Vocabulary
    from scfm.model._base import FoundationModel
    from scfm.model.published import Checkpoint, Dictionaries

__all__ = ["PublishedFolder", "WEIGHTS_FILE"]

WEIGHTS_FILE = "model.safetensors"
PUBLISHED_WEIGHTS = (WEIGHTS_FILE, "pytorch_model.bin", "model_weights.pt")


class PublishedFolder:
    """A folder of weights as their authors publish it.

    Parameters
    ----------
    folder
        Folder with ``config.json`` and the weights, or with adapters of peft; their base model is expected in the same
        folder, or in the one that ``adapter_config.json`` names.
    family
        Family; recognised from ``config.json`` by default.

    Raises
    ------
    FileNotFoundError
        If ``config.json`` or the base model of adapters is missing.
    ValueError
        If no family recognises it, or the family has no published folders.
    """

    def __init__(self, folder: Path, family: str | None = None) -> None:
        self.name = folder.resolve().name
        self.adapter = folder if (folder / ADAPTER_CONFIG).exists() else None
        self.adapter_config = None if self.adapter is None else read_json(folder / ADAPTER_CONFIG)
        folder = folder if self.adapter_config is None else _base(folder, self.adapter_config)
        path = folder / "config.json"
        if not path.exists():
            msg = f"{folder} holds neither {CARD_FILE} (a converted model) nor config.json (published weights)."
            raise FileNotFoundError(msg)
        self.folder = folder
        """Folder of the config and the weights of the network."""
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
        return _first(self.folder, PUBLISHED_WEIGHTS, "weights")

    @property
    def files(self) -> list[Path]:
        """All files of tensors: the weights, then adapters."""
        adapters = [] if self.adapter is None else [_first(self.adapter, ADAPTER_WEIGHTS, "adapters")]
        return [self.weights, *adapters]

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The tensors, split into network and head."""
        tensors: Mapping[str, Tensor] = open_tensors(self.files[0])
        for path in self.files[1:]:
            tensors = {**tensors, **open_tensors(path)}
        return self._reader.checkpoint(tensors, self.config, self.adapter_config)

    def read(self, dictionaries: Dictionaries) -> tuple[ModelCard, Vocabulary]:
        """Read architecture and vocabulary; the card has no hashes yet."""
        card, vocabulary = self._reader.read(self.folder, self.config, dictionaries)
        return card.with_(id=self.name, family=self.cls.family), vocabulary

    def open(self, dictionaries: Dictionaries, known: ModelCard | None = None) -> FoundationModel:
        """Open the weights with their vocabulary; a model whose hash is registered, or that is known, gets its card."""
        checkpoint = self.checkpoint
        card, vocabulary = self.read(dictionaries)
        found = sha256(self.weights)
        card = self._identify(card, found) if known is None else _taken_from(card, known)
        if checkpoint.head:
            card = card.with_(head=self._architecture(), labels=dict(checkpoint.labels))
        card = card.with_(weights_sha256=found if self.adapter is None else sha256(*self.files))
        model = self.cls(card, vocabulary, checkpoint.network)
        model.validate_weights()
        return model

    def _architecture(self) -> str:
        """Class of the saved model."""
        found = self.config.get("architectures")
        return str(found[0]) if isinstance(found, list) and found else "a classifier"

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
                return _taken_from(card, known) if self.adapter is None else _tuned_from(card, known)
        named = None if self.adapter is not None or self.checkpoint.head else find_card(card.id)
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


def _base(folder: Path, adapter: Mapping[str, Any]) -> Path:
    """Folder of the base model of adapters."""
    if (folder / "config.json").exists():
        return folder
    named = adapter.get("base_model_name_or_path")
    base = Path(named).expanduser() if isinstance(named, str) else folder
    if not (base / "config.json").exists():
        msg = (
            f"{folder} holds adapters of {named!r}, which is not a folder on this machine: copy its config.json and weights "
            f"into {folder}."
        )
        raise FileNotFoundError(msg)
    return base


def _first(folder: Path, names: Sequence[str], what: str) -> Path:
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        msg = f"{folder} holds no {what}; expected {' or '.join(names)}."
        raise FileNotFoundError(msg)
    return found[0]


def _taken_from(card: ModelCard, known: ModelCard) -> ModelCard:
    """The card of a known model, with what was read from its files."""
    return known.with_(
        architecture=card.architecture,
        max_tokens=card.max_tokens,
        special_tokens=card.special_tokens,
        aux_tokens=card.aux_tokens,
    )


def _tuned_from(card: ModelCard, known: ModelCard) -> ModelCard:
    """The card of a model fine-tuned from a known one: its own name, with paper and licence of the other."""
    return card.with_(
        species=known.species,
        license=known.license,
        paper=known.paper,
        description=f"fine-tuned from {known.id}",
    )


def _registered(family: str) -> list[ModelCard]:
    import_families()
    return [card for card in known_cards.values() if card.family == family]
