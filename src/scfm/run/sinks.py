"""Where results of batches go: arrays, means of genes, states of genes, shards of a store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from scfm.run.store import COUNTED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack
    from pathlib import Path

    import sparse
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.run.engine import RunStats
    from scfm.run.store import EmbeddingStore, Shard

__all__ = ["ArraySink", "GeneMeansSink", "GeneStatesSink", "ShardSink", "SparseStates", "StatesWriter", "ZarrStates"]

CHUNK_BYTES = 2**24
"""Of the states that are written to zarr."""


class ArraySink:
    """One row per cell, in the order of the source; NaN for cells that never came.

    Parameters
    ----------
    n_obs, n_features
        Shape of the array, which is float32.
    """

    def __init__(self, n_obs: int, n_features: int) -> None:
        self.values: NDArray[np.float32] = np.full((n_obs, n_features), np.nan, dtype=np.float32)

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Store one vector per cell, shape ``(n_cells, n_features)``."""
        self.values[batch.rows] = output.float().cpu().numpy()

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Nothing is held back."""


class GeneMeansSink:
    """Mean of the hidden states of each gene over cells, or over the cells of each group.

    Parameters
    ----------
    column_tokens
        Token of each column of the source, −1 for none.
    n_features
        Features of a hidden state.
    groups
        Group of each cell of the source, −1 for none; one group of all cells by default.
    n_groups
        Number of groups.
    """

    def __init__(
        self,
        column_tokens: NDArray[np.int32],
        n_features: int,
        groups: NDArray[np.int64] | None = None,
        n_groups: int = 1,
    ) -> None:
        from scfm.nn import GeneMeans

        self._tokens, self._columns = np.unique(column_tokens, return_inverse=True)
        self._known = column_tokens >= 0
        self._groups, self._n_groups = groups, n_groups
        self._means = GeneMeans(n_groups * len(self._tokens), n_features)

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Add hidden states of shape ``(n_tokens, n_features)``."""
        import torch

        place = np.minimum(np.searchsorted(self._tokens, batch.tokens), len(self._tokens) - 1)
        used = self._tokens[place] == batch.tokens
        if self._groups is not None:
            group = np.repeat(self._groups[batch.rows], batch.lengths)
            used &= group >= 0
            place = place + group * len(self._tokens)
        at = torch.from_numpy(np.flatnonzero(used))
        self._means.add(output[at.to(output.device)], torch.from_numpy(place[used]))

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Nothing is held back."""

    def values(self) -> NDArray[np.float32]:
        """Means by column, ``(n_columns, n_groups, n_features)``; NaN where it has no token or was never seen."""
        means = self._means.means()[0].numpy().reshape(self._n_groups, len(self._tokens), -1)
        values = means.transpose(1, 0, 2)[self._columns]
        values[~self._known] = np.nan
        return values


class ShardSink:
    """Collect the embeddings of shards, one after the other, and store each when it is complete.

    A context manager: the shard at hand is locked, from before the first of them comes.

    Parameters
    ----------
    store
        Where they go.
    shards
        The shards of the run, one at least, in the order in which their cells come.
    wait
        Seconds to wait for a shard that another process is computing.
    """

    def __init__(self, store: EmbeddingStore, shards: Sequence[Shard], wait: float = 0) -> None:
        self._store = store
        self._waiting = list(shards)
        self._wait = wait
        self._lock: ExitStack | None = None
        self._before = dict.fromkeys(COUNTED, 0)
        self._values = self._empty()

    def __enter__(self) -> Self:
        self._lock = self._store.lock(self._waiting[0], self._wait)
        return self

    def __exit__(self, *args: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Keep one vector per cell, shape ``(n_cells, n_features)``."""
        self._values[batch.rows - self._waiting[0].start] = output.float().cpu().numpy()

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Store the shard if this was its last block."""
        if stop < self._waiting[0].stop:
            return
        now = {name: getattr(stats, name) for name in COUNTED}
        facts = {name: now[name] - self._before[name] for name in COUNTED}
        shard = self._waiting.pop(0)
        # the next lock comes before the marker, so that a second run always finds one
        following = self._store.lock(self._waiting[0], self._wait) if self._waiting else None
        self._store.write(shard, self._values, facts)
        self.__exit__()
        self._lock = following
        self._before, self._values = now, self._empty()

    def _empty(self) -> NDArray[np.float32]:
        n_rows = self._waiting[0].stop - self._waiting[0].start if self._waiting else 0
        return np.full((n_rows, self._store.n_features), np.nan, dtype=np.float32)


class StatesWriter(Protocol):
    """Takes the states of genes in the order of cells and, within a cell, of genes."""

    def append(self, cells: NDArray[np.int64], genes: NDArray[np.int64], states: NDArray[np.float32]) -> None:
        """Store the states of one block."""


class GeneStatesSink:
    """Picks the states of chosen genes out of batches and passes them on, sorted, block by block.

    Parameters
    ----------
    gene_tokens
        Token of each chosen gene, −1 for one that the model does not know; shape ``(n_genes,)``.
    writer
        Takes the states.
    """

    def __init__(self, gene_tokens: NDArray[np.int32], writer: StatesWriter) -> None:
        known = np.flatnonzero(gene_tokens >= 0)
        order = np.argsort(gene_tokens[known], kind="stable")
        self._genes = known[order]
        self._tokens = gene_tokens[self._genes]
        self._writer = writer
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Keep hidden states of shape ``(n_tokens, n_features)`` until the block is complete."""
        import torch

        cells = np.repeat(batch.rows, batch.lengths)
        first = np.searchsorted(self._tokens, batch.tokens, side="left")
        stop = np.searchsorted(self._tokens, batch.tokens, side="right")
        hits = stop - first  # more than one where several chosen columns are one gene
        at = np.repeat(np.arange(len(batch.tokens)), hits)
        within = np.arange(len(at)) - np.repeat(np.cumsum(hits) - hits, hits)
        genes = self._genes[np.repeat(first, hits) + within]
        states = output[torch.from_numpy(at).to(output.device)].float().cpu().numpy()
        self._parts.append((cells[at], genes, states))

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Pass on what has come since the last block."""
        if not self._parts:
            return
        cells, genes, states = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
        self._parts.clear()
        order = np.lexsort((genes, cells))
        self._writer.append(cells[order], genes[order], states[order])


class SparseStates:
    """Collect states into one sparse array of shape ``(n_cells, n_genes, n_features)``.

    Parameters
    ----------
    shape
        Shape of the array.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def append(self, cells: NDArray[np.int64], genes: NDArray[np.int64], states: NDArray[np.float32]) -> None:
        """Store the states of one block."""
        self._parts.append((cells, genes, states))

    def array(self) -> sparse.GCXS:
        """The array; compressed along the cells, zero where a gene is not expressed."""
        import sparse

        n_cells, n_genes, n_features = self._shape
        parts = [np.concatenate(arrays) for arrays in zip(*self._parts, strict=True)] if self._parts else []
        cells, genes, states = parts or (np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, n_features), "f4"))
        self._parts.clear()
        indptr = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=n_cells))]) * n_features
        indices = (genes[:, None] * n_features + np.arange(n_features)).ravel()
        return sparse.GCXS((states.ravel(), indices, indptr), shape=self._shape, compressed_axes=(0,))


class ZarrStates:
    """Write states to a zarr group as they come.

    The group holds ``states`` ``(n, n_features)``, ``genes`` ``(n,)`` and ``indptr`` ``(n_cells + 1,)``: the genes of
    cell ``i`` and their states are the rows from ``indptr[i]`` to ``indptr[i + 1]``.

    Parameters
    ----------
    path
        Folder of the group; must not exist.
    n_cells, n_features
        Sizes.
    """

    def __init__(self, path: Path, n_cells: int, n_features: int) -> None:
        import zarr

        self._root: Any = zarr.open_group(path, mode="w-")
        rows = max(1, CHUNK_BYTES // (4 * n_features))
        self._states = self._root.create_array("states", shape=(0, n_features), chunks=(rows, n_features), dtype="f4")
        self._genes = self._root.create_array("genes", shape=(0,), chunks=(2**18,), dtype="i4")
        self._counts = np.zeros(n_cells, np.int64)

    def append(self, cells: NDArray[np.int64], genes: NDArray[np.int64], states: NDArray[np.float32]) -> None:
        """Store the states of one block."""
        self._states.append(states)
        self._genes.append(genes.astype(np.int32))
        self._counts += np.bincount(cells, minlength=len(self._counts))

    def finish(self, obs_names: Any, gene_names: Any, params: dict[str, Any]) -> None:
        """Write what describes the states."""
        indptr = np.concatenate([[0], np.cumsum(self._counts)])
        self._root.create_array("indptr", data=indptr)
        for name, values in (("obs_names", obs_names), ("gene_names", gene_names)):
            array = self._root.create_array(name, shape=(len(values),), dtype=str)
            array[:] = np.asarray(values, dtype=object)
        self._root.attrs["params"] = json.loads(json.dumps(params, default=str))
