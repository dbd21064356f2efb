"""Where results of batches go: arrays, means of genes, states of genes, shards of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from scfm.batch import ranges_of
from scfm.run.empty import INDEX, UNSHARDED, replaced
from scfm.run.store import COUNTED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.run.engine import RunStats
    from scfm.run.plan import Shard
    from scfm.run.store import ShardStore

__all__ = [
    "ArraySink",
    "Collector",
    "GeneMeansSink",
    "GeneStatesSink",
    "RowsCollector",
    "ShardSink",
    "StatesTable",
    "StatesWriter",
    "ZarrStates",
]

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
        self.means = GeneMeans(n_groups * len(self._tokens), n_features)
        """Sums and counts, a row for each token of each group."""

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
        self.means.add(output[at.to(output.device)], torch.from_numpy(place[used]))

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Nothing is held back."""

    def values(self) -> NDArray[np.float32]:
        """Means by column, ``(n_columns, n_groups, n_features)``; NaN where it has no token or was never seen."""
        means = self.means.means()[0].numpy().reshape(self._n_groups, len(self._tokens), -1)
        values = means.transpose(1, 0, 2)[self._columns]
        values[~self._known] = np.nan
        return values

    def counts(self) -> NDArray[np.int64]:
        """Number of states by column, ``(n_columns, n_groups)``; 0 where it has no token."""
        counts = self.means.means()[1].numpy().reshape(self._n_groups, len(self._tokens)).T[self._columns]
        return np.where(self._known[:, None], counts, 0)


class Collector(Protocol):
    """Collects the results of a shard."""

    def begin(self, shard: Shard) -> None:
        """Forget what is there; results of this shard come next."""

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Keep the output of one batch."""

    def values(self) -> dict[str, NDArray[Any]]:
        """Rows of the shard for each array of the store, by its path."""


class RowsCollector:
    """A vector for each cell; NaN for cells that never came.

    Parameters
    ----------
    path
        Place of the array in the store.
    n_features
        Size of a vector.
    """

    def __init__(self, path: str, n_features: int) -> None:
        self._path, self._n_features = path, n_features

    def begin(self, shard: Shard) -> None:
        """Make room for the vectors of a shard."""
        self._start = shard.start
        self._values = np.full((shard.stop - shard.start, self._n_features), np.nan, dtype=np.float32)

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Keep one vector per cell, shape ``(n_cells, n_features)``."""
        self._values[batch.rows - self._start] = output.float().cpu().numpy()

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Nothing is held back."""

    def values(self) -> dict[str, NDArray[Any]]:
        """Rows of the shard."""
        return {self._path: self._values}


class ShardSink:
    """Have the results of shards collected, one after the other, and store those of each when they are complete.

    A context manager: the shard at hand is locked, from before the first of its cells comes.

    Parameters
    ----------
    store
        Where they go.
    shards
        The shards of the run, one at least, in the order in which their cells come.
    collector
        Collects the results.
    cells
        Sorted positions of the cells that are computed, some in each shard; all by default.
    wait
        Seconds to wait for a shard that another process is computing.
    """

    def __init__(
        self,
        store: ShardStore,
        shards: Sequence[Shard],
        collector: Collector,
        cells: NDArray[np.int64] | None = None,
        wait: float = 0,
    ) -> None:
        self._store, self._collector, self._wait = store, collector, wait
        self._waiting = [(shard, _spans_of(shard, cells)) for shard in shards]
        self.spans = [span for _, spans in self._waiting for span in spans]
        """Ranges of the cells to compute."""
        self._lock: ExitStack | None = None
        self._before = dict.fromkeys(COUNTED, 0)

    def __enter__(self) -> Self:
        self._lock = self._store.lock(self._waiting[0][0], self._wait)
        self._collector.begin(self._waiting[0][0])
        return self

    def __exit__(self, *args: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Keep the output of one batch."""
        self._collector.write(batch, output)

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Store the shard if this was its last block."""
        if stop < self._waiting[0][1][-1][1]:
            return
        now = {name: getattr(stats, name) for name in COUNTED}
        facts = {name: now[name] - self._before[name] for name in COUNTED}
        shard, _ = self._waiting.pop(0)
        # the next lock comes before the marker, so that a second run always finds one
        following = self._store.lock(self._waiting[0][0], self._wait) if self._waiting else None
        self._store.write(shard, self._collector.values(), facts)
        self.__exit__()
        self._lock, self._before = following, now
        if self._waiting:
            self._collector.begin(self._waiting[0][0])


def _spans_of(shard: Shard, cells: NDArray[np.int64] | None) -> list[tuple[int, int]]:
    if cells is None:
        return [(shard.start, shard.stop)]
    first, last = np.searchsorted(cells, [shard.start, shard.stop])
    return ranges_of(cells[first:last])


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


class StatesTable:
    """Collects states in memory, as the rows of an AnnData.

    Parameters
    ----------
    cell_names, gene_names
        Names of the cells of the source, and of the chosen genes.
    n_features
        Features of a state.
    """

    def __init__(self, cell_names: pd.Index, gene_names: pd.Index, n_features: int) -> None:
        self._names = cell_names, gene_names
        empty = np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, n_features), np.float32)
        self._parts: list[tuple[NDArray[Any], ...]] = [empty]

    def append(self, cells: NDArray[np.int64], genes: NDArray[np.int64], states: NDArray[np.float32]) -> None:
        """Store the states of one block."""
        self._parts.append((cells, genes, states))

    def table(self, uns: dict[str, Any]) -> AnnData:
        """A row for each gene of each cell, the features as columns."""
        cells, genes, states = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
        self._parts.clear()
        return _states_table(cells, genes, states, *self._names, uns)


class ZarrStates:
    """Writes states to a zarr store as they come: the AnnData that :class:`StatesTable` would make.

    Parameters
    ----------
    path
        Folder of the store; must not exist.
    cell_names, gene_names
        Names of the cells of the source, and of the chosen genes.
    n_features
        Features of a state.
    """

    def __init__(self, path: Path, cell_names: pd.Index, gene_names: pd.Index, n_features: int) -> None:
        import zarr
        from anndata.io import write_elem
        from zarr.dtype import VariableLengthUTF8

        nothing = np.empty(0, np.int64)
        empty = _states_table(nothing, nothing, np.empty((0, n_features), "f4"), cell_names, gene_names, {})
        self._root: Any = zarr.open_group(path, mode="w-", zarr_format=3)
        write_elem(self._root, "/", empty, dataset_kwargs=UNSHARDED)
        obs: Any = self._root["obs"]
        rows = max(1, CHUNK_BYTES // (4 * n_features))
        self._states = replaced(self._root, "X", (0, n_features), "f4", chunk_rows=rows)
        self._codes = [replaced(obs[name], "codes", (0,), "i4") for name in ("cell", "gene")]
        self._index = replaced(obs, INDEX, (0,), VariableLengthUTF8())

    def append(self, cells: NDArray[np.int64], genes: NDArray[np.int64], states: NDArray[np.float32]) -> None:
        """Store the states of one block."""
        start = self._index.shape[0]
        self._states.append(states)
        for array, codes in zip(self._codes, (cells, genes), strict=True):
            array.append(codes.astype(np.int32))
        self._index.append(np.arange(start, start + len(states)).astype(str).astype(object))

    def finish(self, uns: dict[str, Any]) -> None:
        """Write what describes the states."""
        from anndata.io import write_elem

        write_elem(self._root, "uns", uns, dataset_kwargs=UNSHARDED)


def _states_table(
    cells: NDArray[np.int64],
    genes: NDArray[np.int64],
    states: NDArray[np.float32],
    cell_names: pd.Index,
    gene_names: pd.Index,
    uns: dict[str, Any],
) -> AnnData:
    import pandas as pd
    from anndata import AnnData
    from anndata.utils import make_index_unique

    named = {"cell": (cells, cell_names), "gene": (genes, gene_names)}
    columns = {
        name: pd.Categorical.from_codes(codes, make_index_unique(names.astype(str)).rename(None))
        for name, (codes, names) in named.items()
    }
    obs = pd.DataFrame(columns, index=pd.RangeIndex(len(cells)).astype(str))
    return AnnData(states, obs=obs, var=pd.DataFrame(index=pd.RangeIndex(states.shape[1]).astype(str)), uns=uns)
