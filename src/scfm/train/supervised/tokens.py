"""Token sequences of all cells, encoded once, of which each epoch draws batches."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from scfm._types import TokenBlock
from scfm.batch import make_batch, plan_batches
from scfm.run.device import default_batch_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from scfm._types import TokenBatch
    from scfm.model.session import Session

__all__ = ["batches_of", "encoded_cells", "training_tokens"]

TRAINING_TOKENS = 16_384
"""Tokens whose states fit into the memory of a GPU with a network of 100 million weights."""
IN_MEMORY = 2**28
"""Bytes of tokens that are held in memory; more of them go to a file."""


@contextmanager
def encoded_cells(session: Session, cache: Path | None = None, in_memory: int | None = None) -> Iterator[TokenBlock]:
    """Encode all cells of a session once.

    Parameters
    ----------
    session
        Cells and a model.
    cache
        Folder for the file of the tokens of many cells, which is removed at the end; that for temporary files by default.
    in_memory
        Bytes of tokens above which they go to a file; 256 MiB by default.

    Yields
    ------
    All sequences as one block, its arrays perhaps in a file.
    """
    with ExitStack() as stack:
        tokens, values = (_Column(stack, cache, IN_MEMORY if in_memory is None else in_memory) for _ in range(2))
        lengths, n_genes = [], []
        for block in session.encoded([(0, session.source.n_obs)]):
            tokens.add(block.tokens)
            if block.values is not None:
                values.add(block.values)
            lengths.append(np.diff(block.offsets))
            n_genes.append(block.n_genes)
        yield TokenBlock(
            row0=0,
            tokens=tokens.array(np.int32),
            offsets=np.concatenate([[0], np.cumsum(np.concatenate([*lengths, []]), dtype=np.int64)]),
            n_genes=np.concatenate([*n_genes, []]).astype(np.int64),
            values=values.array(np.float32) if values.n else None,
        )


class _Column:
    """An array that grows, in memory until it is too large for it."""

    def __init__(self, stack: ExitStack, folder: Path | None, limit: int) -> None:
        self._stack, self._folder, self._limit = stack, folder, limit
        self._parts: list[NDArray[Any]] = []
        self._file: BinaryIO | None = None
        self.n = 0

    def add(self, part: NDArray[Any]) -> None:
        """Append values, all of one type."""
        self.n += len(part)
        if self._file is not None:
            part.tofile(self._file)
            return
        self._parts.append(part)
        if self.n * part.itemsize > self._limit:
            folder = self._stack.enter_context(TemporaryDirectory(prefix="scfm-tokens-", dir=self._folder))
            self._file = self._stack.enter_context((Path(folder) / "values").open("w+b"))
            for kept in self._parts:
                kept.tofile(self._file)
            self._parts = []

    def array(self, dtype: type[np.generic]) -> NDArray[Any]:
        """All values."""
        if self._file is None:
            whole, start = np.empty(self.n, dtype), 0
            while self._parts:  # which are freed one by one
                part = self._parts.pop(0)
                whole[start : start + len(part)] = part
                start += len(part)
            return whole
        self._file.flush()
        return np.memmap(self._file.name, dtype=dtype, mode="r")


def training_tokens(device: torch.device) -> int:
    """Token budget of a part of a step by default: a backward pass needs all states of all layers."""
    return min(default_batch_tokens(device), TRAINING_TOKENS)


def batches_of(
    cells: TokenBlock, rows: NDArray[np.int64], batch_tokens: int, *, padded: bool = False
) -> list[TokenBatch]:
    """Some of the cells in batches of at most ``batch_tokens`` tokens, longest first; those without tokens are skipped."""
    batch = make_batch(cells, rows)
    part = TokenBlock(
        row0=0,
        tokens=batch.tokens.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(batch.lengths)]),
        n_genes=cells.n_genes[rows],
        values=batch.values,
        rows=batch.rows,
    )
    return list(plan_batches(part, batch_tokens, padded=padded))
