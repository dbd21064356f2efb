"""Where batches and their targets come from: token sequences of cells, or vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scfm.train.supervised.tokens import batches_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scfm._types import TokenBatch, TokenBlock

__all__ = ["CellTargets", "Inputs", "Part", "TokenInputs", "TokenTargets", "VectorInputs"]


class Part(NamedTuple):
    """What goes through the network together, and what it should give."""

    inputs: Any
    """A :class:`~scfm._types.TokenBatch`, or vectors, float32 of shape ``(n, d)``."""
    targets: Mapping[str, NDArray[Any]]
    """By name of the target the value of each of its outputs; the missing ones are not predicted."""


@dataclass(frozen=True)
class CellTargets:
    """A value of each cell for each target."""

    values: Mapping[str, NDArray[Any]]

    def of(self, batch: TokenBatch) -> dict[str, NDArray[Any]]:
        """Values of the cells of a batch."""
        return {name: values[batch.rows] for name, values in self.values.items()}

    def arrays(self) -> list[NDArray[Any]]:
        """The values of each target."""
        return list(self.values.values())


@dataclass(frozen=True)
class TokenTargets:
    """A class of each gene, −1 for none."""

    name: str
    code_of_token: NDArray[np.int64]
    """Shape ``(vocab_size,)``."""

    def of(self, batch: TokenBatch) -> dict[str, NDArray[Any]]:
        """Classes of the tokens of a batch."""
        # an assay of TranscriptFormer is a token behind those of the genes
        known = batch.tokens < len(self.code_of_token)
        codes = np.where(known, self.code_of_token[np.where(known, batch.tokens, 0)], -1)
        return {self.name: codes}

    def arrays(self) -> list[NDArray[Any]]:
        """The classes."""
        return [self.code_of_token]


class Inputs(ABC):
    """Makes the parts of a step of some cells."""

    @abstractmethod
    def parts(self, rows: NDArray[np.int64]) -> list[Part]:
        """The cells in parts that go through the network one by one."""

    @abstractmethod
    def arrays(self) -> list[NDArray[Any]]:
        """All that the parts are made of, by which two runs are told apart."""


@dataclass(frozen=True)
class TokenInputs(Inputs):
    """Token sequences of cells."""

    cells: TokenBlock
    targets: CellTargets | TokenTargets
    batch_tokens: int
    padded: bool = False
    """Whether the network pads the sequences of a batch."""

    def parts(self, rows: NDArray[np.int64]) -> list[Part]:
        """The cells in batches of ``batch_tokens`` tokens."""
        batches = batches_of(self.cells, rows, self.batch_tokens, padded=self.padded)
        return [Part(batch, self.targets.of(batch)) for batch in batches]

    def arrays(self) -> list[NDArray[Any]]:
        """Sequences and targets."""
        values = [] if self.cells.values is None else [self.cells.values]
        return [self.cells.offsets, self.cells.tokens, *values, *self.targets.arrays()]


@dataclass(frozen=True)
class VectorInputs(Inputs):
    """An embedding of each cell."""

    vectors: NDArray[np.float32]
    values: Mapping[str, NDArray[Any]]

    def parts(self, rows: NDArray[np.int64]) -> list[Part]:
        """All cells at once."""
        return [Part(self.vectors[rows], {name: values[rows] for name, values in self.values.items()})]

    def arrays(self) -> list[NDArray[Any]]:
        """Vectors and targets."""
        return [self.vectors, *self.values.values()]
