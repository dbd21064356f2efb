"""The folder of a converted model, as it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scfm.genes.vocabulary import vocabulary_files
from scfm.model._published_folder import WEIGHTS_FILE
from scfm.weights.tensors import save_tensors, sha256

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from scfm.genes import Vocabulary
    from scfm.weights import ModelCard

__all__ = ["finish_folder", "write_folder"]


def write_folder(folder: Path, card: ModelCard, vocabulary: Vocabulary, tensors: Mapping[str, Tensor]) -> None:
    """Make a folder that :func:`scfm.model.load` takes.

    Parameters
    ----------
    folder
        Place for it, where nothing is yet.
    card
        Description, without the hashes of the files.
    vocabulary
        Genes and tokens.
    tensors
        Weights by published name.

    Raises
    ------
    ValueError
        If a weight is not finite.
    """
    folder.mkdir()
    save_tensors(tensors, folder / WEIGHTS_FILE)
    finish_folder(folder, card, vocabulary)


def finish_folder(folder: Path, card: ModelCard, vocabulary: Vocabulary) -> None:
    """Add vocabulary and card, with the hashes of the files, to a folder that has its weights."""
    vocabulary.save(folder)
    hashes = {"weights_sha256": sha256(folder / WEIGHTS_FILE), "vocabulary_sha256": sha256(*vocabulary_files(folder))}
    card.with_(**hashes).write(folder)
    folder.chmod(0o755)
