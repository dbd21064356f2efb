"""How the authors of a family publish weights: what reads their folders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfm.model._fine_tuned import Checkpoint, read_checkpoint
from scfm.weights.card import ModelCard
from scfm.weights.dictionaries import find_dictionaries, read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scfm.genes import Vocabulary
    from scfm.nn import BertConfig

__all__ = ["Checkpoint", "Dictionaries", "Published", "PublishedBert"]

Dictionaries = str | Path | Sequence[str | Path] | None


class Published(ABC):
    """Reads the folders in which the authors of a family publish weights.

    A family without such a reader is loaded from converted folders, or by the names of its cards.
    """

    @abstractmethod
    def recognizes(self, config: Mapping[str, Any]) -> bool:
        """Whether a published ``config.json`` is one of the family."""

    @abstractmethod
    def read(self, folder: Path, config: Mapping[str, Any], dictionaries: Dictionaries) -> tuple[ModelCard, Vocabulary]:
        """Read architecture and vocabulary of a published folder; the card has no hashes yet."""

    @abstractmethod
    def read_vocabulary(self, card: ModelCard, dictionaries: Dictionaries) -> Vocabulary:
        """Read the published vocabulary of a registered model, without any weights."""

    def checkpoint(
        self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], adapter: Mapping[str, Any] | None
    ) -> Checkpoint:
        """Split published tensors into network and head; by default all belong to the network.

        Parameters
        ----------
        tensors
            Tensors by published name.
        config, adapter
            Content of ``config.json``, and of the ``adapter_config.json`` of peft, if there is one.
        """
        if adapter is not None:
            msg = "adapter_config.json: adapters are read for BERT models only (Geneformer, scCello)."
            raise ValueError(msg)
        return Checkpoint(tensors)


@dataclass(frozen=True)
class PublishedBert(Published):
    """A BERT of the transformers package, with Geneformer's dictionaries beside it: pretrained or fine-tuned.

    Parameters
    ----------
    family
        Name of the family.
    hidden_layer
        Layer that is read by default.
    appended
        Special tokens that come after all tokens of the dictionaries.
    """

    family: str
    hidden_layer: int = 0
    appended: tuple[str, ...] = ()

    def recognizes(self, config: Mapping[str, Any]) -> bool:
        """Whether it is a BERT."""
        return config.get("model_type") == "bert"

    def sizes(self, config: Mapping[str, Any]) -> BertConfig:
        """Sizes of the network by a published ``config.json``."""
        from scfm.nn import BertConfig

        return BertConfig.from_dict(config)

    def read(self, folder: Path, config: Mapping[str, Any], dictionaries: Dictionaries) -> tuple[ModelCard, Vocabulary]:
        """Read config and dictionaries; a model whose vocabulary has ``<cls>`` is pooled there."""
        sizes = self.sizes(config)
        vocabulary = self._vocabulary(folder, dictionaries, sizes.vocab_size)
        card = ModelCard(
            id=folder.resolve().name,
            family=self.family,
            architecture=sizes.architecture(),
            pooling="cls" if "<cls>" in vocabulary.special_tokens else "mean",
            hidden_layer=self.hidden_layer,
            max_tokens=sizes.max_positions,
            special_tokens=dict(vocabulary.special_tokens),
        )
        return card, vocabulary

    def checkpoint(
        self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], adapter: Mapping[str, Any] | None
    ) -> Checkpoint:
        """Separate the head of a fine-tuned model, and merge adapters."""
        return read_checkpoint(tensors, config, adapter)

    def read_vocabulary(self, card: ModelCard, dictionaries: Dictionaries) -> Vocabulary:
        """Read the published dictionaries that have as many tokens as the card says."""
        return self._vocabulary(None, dictionaries, card.architecture.get("vocab_size"))

    def _vocabulary(self, folder: Path | None, dictionaries: Dictionaries, vocab_size: int | None) -> Vocabulary:
        rows = None if vocab_size is None else vocab_size - len(self.appended)
        return read_vocabulary(find_dictionaries(folder, dictionaries, rows), appended=self.appended)
