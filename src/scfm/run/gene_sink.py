"""Where the states of single genes in single cells go."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    import sparse
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.run.engine import RunStats

__all__ = ["GeneStatesSink", "SparseStates", "StatesWriter", "ZarrStates"]

CHUNK_BYTES = 2**24


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
