"""Heads of published fine-tuned models, which predict without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scfm.model import load as load_model
from scfm.train.supervised.setup import Setup
from scfm.train.supervised.targets import Classes
from scfm.weights.card import CARD_FILE, ModelCard
from scfm.weights.tensors import open_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


__all__ = ["class_of_head", "load_published"]

HEAD_FILE = "head.safetensors"
KINDS = {
    "BertForSequenceClassification": ("CellClassifier", "bert"),
    "BertForTokenClassification": ("GeneClassifier", None),
}
"""Class of a published model, and the model here that has its head."""


def class_of_head(folder: Path) -> str:
    """Name of the class here that a converted fine-tuned checkpoint is of; a ValueError if it holds no such head."""
    return _read(folder)[2]


def load_published(cls: Any, folder: Path, adata: Any) -> Any:
    """Make a model of a folder that :func:`scfm.model.convert` made of a fine-tuned checkpoint.

    Raises
    ------
    ValueError
        If the folder has no head, or one of another class, or data are given.
    """
    card, tensors, wanted, reading = _read(folder)
    if wanted != cls.__name__:
        msg = f"{folder} holds the head of a {card.head}, not of a {cls.__name__}: scfm.train.{wanted}.load reads it."
        raise ValueError(msg)
    if adata is not None:
        msg = f"{folder} does not say which column of obs it was trained on: load it without data, and call predict(adata)."
        raise ValueError(msg)
    labels = {name: tuple(known) for name, known in card.labels.items()}
    arguments: dict[str, Any] = {"model": load_model(folder)}
    arguments |= {} if reading is None else {"head": reading}
    model = cls.restored(None, Setup(columns=tuple(labels)), arguments)
    # the order of the published outputs is kept, whatever their names
    model.targets = {name: Classes(known) for name, known in labels.items()}
    model.task_weights = dict.fromkeys(labels, 1.0)
    model.module = model.new_module()
    head: Any = model.module.head
    head.load_published(tensors)
    model.module.eval()
    model.is_trained_ = True
    return model


def _read(folder: Path) -> tuple[ModelCard, dict[str, Tensor], str, str | None]:
    """Card and head of a folder, the class here that has such a head, and what its head reads."""
    path = folder / HEAD_FILE
    card = ModelCard.read(folder) if (folder / CARD_FILE).is_file() else None
    if card is None or not path.is_file():
        msg = (
            f"{folder} holds no trained head: give a folder of save(), or one that scfm.model.convert made of a fine-tuned "
            "checkpoint."
        )
        raise ValueError(msg)
    tensors = dict(open_tensors(path))
    if any(name.startswith("classification_heads.") for name in tensors):
        pooled = any(name.startswith("attention_pool.") for name in tensors)
        return card, tensors, "MultiTaskClassifier", "attention" if pooled else "first"
    if card.head not in KINDS:
        msg = f"{folder} holds the head of a {card.head or 'model of an unknown class'}, which no class here has; there are {', '.join(KINDS)}."
        raise ValueError(msg)
    return card, tensors, *KINDS[card.head]
