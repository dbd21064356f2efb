"""The card of a model: what it is, where it comes from, how it is used by default."""

from __future__ import annotations

import json
import re
import reprlib
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

from scfm._paths import read_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CARD_FILE", "ModelCard", "check_plain", "read_cards"]

CARD_FILE = "card.json"
CARD_FORMAT = 1
MAX_ID = 200
_PATH = r"\w[\w.+-]*(/\w[\w.+-]*)*"
_PLAIN = {
    name: re.compile(pattern, re.ASCII)
    for name, pattern in {
        "revision": _PATH,
        "source": rf"(https?://\w[\w.-]*(:\d+)?(/{_PATH})?|{_PATH})?/?",
        "source_file": rf"({_PATH})?",
        "dictionaries": rf"({_PATH}(@{_PATH})?:)?{_PATH}",
    }.items()
}
"""What paths and addresses are made of: no part of one can lead anywhere else."""


def check_plain(name: str, part: str) -> None:
    """Raise a ValueError if a revision, a source or a path in it holds more than plain characters."""
    if not _PLAIN[name].fullmatch(part):
        msg = (
            f"{name}={reprlib.repr(part)} cannot be part of a path or an address: expected letters, digits and any "
            "of ._+- in parts between '/', each of which starts with a letter or digit."
        )
        raise ValueError(msg)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Description of one set of weights.

    A registered model has a card in a file of its family; a converted model carries its own as ``card.json``.

    Raises
    ------
    ValueError
        If the id, or something of which a path or an address is made, holds more than plain characters.
    """

    id: str
    """Name that :func:`scfm.model.load` takes, as ``"geneformer-v2-104m"``."""
    family: str
    """Family, which gives the default keys of results: ``"geneformer"`` → ``obsm["X_geneformer"]``."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Sizes of the network, by the field names of its config class."""
    pooling: str
    """Default pooling."""
    hidden_layer: int = 0
    """Default layer: 0 is the last, −1 the one before it."""
    max_tokens: int | None = None
    """Longest token sequence, special tokens included; ``None`` for a model that reads all genes of a cell."""
    special_tokens: dict[str, int] = field(default_factory=dict)
    """Ids of the tokens that are no genes."""
    aux_tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    """Ids of the labels of annotations that the model reads, as ``{"assay": {"unknown": 0, …}}``."""
    aliases: tuple[str, ...] = ()
    """Other names the model goes by."""
    species: str = "human"
    """Species of the gene ids."""
    source: str = ""
    """Repository of the published weights."""
    source_file: str = ""
    """Path of the weights in the repository."""
    revision: str | None = None
    """Commit of the repository."""
    source_sha256: str | None = None
    """Hash of the published weights; ``None`` where it is not known, then recorded on first use."""
    dictionaries: dict[str, str] = field(default_factory=dict)
    """Path in the repository and sha256 of each file of gene tables; ``owner/name@revision:path`` for another one."""
    license: str = ""
    """SPDX identifier of the licence of the weights."""
    paper: str = ""
    """DOI of the paper that describes the model."""
    description: str = ""
    """One line on the training data."""
    n_parameters: int | None = None
    """Number of weights, tied ones once."""
    head: str = ""
    """For a fine-tuned model: class of the model that its ``head.safetensors`` belongs to, as its ``config.json`` says."""
    labels: dict[str, list[str]] = field(default_factory=dict)
    """Labels of each output of that head, in order, by the name of its layer."""
    training: dict[str, Any] = field(default_factory=dict)
    """For a model that :func:`scfm.train.pretrain` made: its data with their terms and hashes, the run, and loss curves."""
    weights_sha256: str | None = None
    """Hash of the ``model.safetensors`` beside a ``card.json``."""
    vocabulary_sha256: str | None = None
    """Hash of the ``vocabulary.tsv`` and ``aliases.tsv`` beside a ``card.json``, one after the other."""

    def __post_init__(self) -> None:
        for name in _PLAIN:
            value = getattr(self, name)
            for part in [value] if isinstance(value, str) else value or ():
                check_plain(name, part)
        if not (self.id.isprintable() and 0 < len(self.id) <= MAX_ID) or self.id[0] == "." or set(self.id) & {*"/\\"}:
            msg = f"id={reprlib.repr(self.id)} cannot be the name of a folder: expected 1 to {MAX_ID} printable characters without slashes, and no dot first."
            raise ValueError(msg)

    def write(self, folder: Path) -> None:
        """Write ``card.json`` into ``folder``."""
        text = json.dumps({"format": CARD_FORMAT, **asdict(self)}, indent=2, sort_keys=False)
        (folder / CARD_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read ``card.json`` of a converted model.

        Raises
        ------
        ValueError
            If it is no card, or one that a newer version of scfm wrote.
        """
        path = folder / CARD_FILE
        values = read_json(path)
        if values.pop("format", None) != CARD_FORMAT:
            msg = (
                f"{path} is not a model card of format {CARD_FORMAT}; convert the model again with scfm.model.convert."
            )
            raise ValueError(msg)
        return cls._checked(values, path, "convert the model again")

    @classmethod
    def _checked(cls, values: dict[str, Any], path: Path, remedy: str) -> Self:
        """The card of values out of a file."""
        known = {f.name for f in fields(cls)}
        missing = [name for name in ("id", "family", "pooling", "architecture") if name not in values]
        unknown = [name for name in values if name not in known]
        if missing or unknown:
            msg = f"{path} lacks {missing} and has unknown entries {unknown[:5]}: {remedy}."
            raise ValueError(msg)
        _check_types(values, path, remedy)
        try:
            return cls(**values | {"aliases": tuple(values.get("aliases", ()))})
        except ValueError as error:
            msg = f"{path}: {error} {remedy.capitalize()}."
            raise ValueError(msg) from error

    def with_(self, **changes: Any) -> Self:
        """Copy with some fields changed."""
        return replace(self, **changes)


def read_cards(path: Path, family: str) -> tuple[ModelCard, ...]:
    """Read the cards of a family from a TOML file.

    A table of the file is a group of models: its fields are those of all its ``models``, each of which adds its own.
    ``architecture`` may be split between them.

    Parameters
    ----------
    path
        The file.
    family
        Name of the family.

    Raises
    ------
    ValueError
        If a field is missing, unknown or of another type.
    """
    found = []
    for group in tomllib.loads(path.read_text(encoding="utf-8")).values():
        shared = {name: value for name, value in group.items() if name != "models"}
        for own in group.get("models", []):
            architecture = {**shared.get("architecture", {}), **own.get("architecture", {})}
            values = {"family": family, **shared, **own, "architecture": architecture}
            found.append(ModelCard._checked(values, path, "correct the file"))
    return tuple(found)


_TEXT = ("id", "family", "pooling", "species", "source", "source_file", "license", "paper", "description", "head")
_TEXT_OR_NONE = ("revision", "source_sha256", "weights_sha256", "vocabulary_sha256")
_TABLES = ("architecture", "special_tokens", "dictionaries", "aux_tokens", "labels", "training")


def _check_types(values: dict[str, Any], path: Path, remedy: str) -> None:
    expected: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(_TEXT, (str,)),
        **dict.fromkeys(_TEXT_OR_NONE, (str, type(None))),
        **dict.fromkeys(_TABLES, (dict,)),
        "aliases": (list,),
        "hidden_layer": (int,),
        **dict.fromkeys(("max_tokens", "n_parameters"), (int, type(None))),
    }
    wrong = [name for name, value in values.items() if not isinstance(value, expected[name])]
    wrong += [] if wrong else _wrong_tokens(values) + _wrong_texts(values)
    if wrong:
        msg = f"{path}: {wrong[0]} is {values[wrong[0]]!r}, which a card cannot hold there; {remedy}."
        raise ValueError(msg)


def _wrong_tokens(values: dict[str, Any]) -> list[str]:
    """Tables of tokens that do not give a number to every name."""
    tables = {"special_tokens": [values.get("special_tokens", {})], "aux_tokens": values.get("aux_tokens", {}).values()}
    return [
        name
        for name, parts in tables.items()
        if not all(isinstance(part, dict) and all(isinstance(v, int) for v in part.values()) for part in parts)
    ]


def _wrong_texts(values: dict[str, Any]) -> list[str]:
    """Lists and tables of texts that hold something else."""
    labels = values.get("labels", {}).values()
    parts = {"aliases": values.get("aliases", []), "dictionaries": values.get("dictionaries", {}).values()}
    parts["labels"] = [label for part in labels for label in (part if isinstance(part, list) else [None])]
    return [name for name, part in parts.items() if not all(isinstance(text, str) for text in part)]
