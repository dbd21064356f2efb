"""One pass of a model over a data set: what is common to embedding, scoring and gene embeddings."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scfm._checks import is_int
from scfm._package import version_of
from scfm._settings import settings
from scfm._warn import warn
from scfm.batch import fixed_size_batches, prefetch, row_ranges
from scfm.genes import columns_of, find_columns
from scfm.read.kernels import count_fractional
from scfm.run import RunPlan, run
from scfm.run.device import default_batch_tokens
from scfm.tasks import cell_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from scfm._types import CountBlock, TokenBatch, TokenBlock
    from scfm.genes import GeneMap
    from scfm.model.recipe import Recipe, RunOptions
    from scfm.read import CountSource, Source
    from scfm.run import RunStats
    from scfm.tasks import Task

__all__ = ["CellAttention", "CountSession", "Session", "counting_fractional", "counts_of"]

logger = logging.getLogger("scfm")


def counts_of(stats: RunStats) -> dict[str, int]:
    """How many cells went through, were cut or empty; were left out, held fractions or gave no finite result, if any did."""
    counts = {"n_cells": stats.n_cells, "n_cells_truncated": stats.n_truncated, "n_cells_empty": stats.n_empty}
    rare = {
        "n_cells_dropped": stats.n_dropped,
        "n_cells_fractional": stats.n_fractional,
        "n_cells_not_finite": stats.n_not_finite,
    }
    return counts | {name: count for name, count in rare.items() if count}


def counting_fractional(encode: Callable[[CountBlock], TokenBlock]) -> Callable[[CountBlock], TokenBlock]:
    """The same step, which also notes how many cells have a count that is not a whole number."""

    def counted(block: CountBlock) -> TokenBlock:
        tokens = encode(block)
        if block.data.dtype.kind in "ui":
            return tokens
        return replace(tokens, n_fractional=int(count_fractional(block.indptr, block.data)))

    return counted


class CellAttention(NamedTuple):
    """Attention weights of one cell."""

    names: NDArray[np.str_]
    """Genes, by their names in ``var_names``, and special tokens, shape ``(n_tokens,)``."""
    weights: NDArray[np.float32]
    """From each token (second axis) to each token (third axis), shape ``(n_heads, n_tokens, n_tokens)``; rows add up to 1."""


@dataclass(frozen=True)
class Session(ABC):
    """A model, an open source, and what is to be done; made by :meth:`FoundationModel.session`."""

    model: Recipe
    """The model, adapted to the options."""
    source: Source[Any]
    options: RunOptions
    devices: tuple[torch.device, ...]
    """Where the network runs: copies of it share the batches of a run."""
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """The first of the devices."""
        return self.devices[0]

    def networks(self) -> list[torch.nn.Module]:
        """The network with as many layers as the run needs, on each of the devices."""
        return self.model.networks(self.options.n_layers, self.devices, self.dtype, self.options.quantize)

    def files(self) -> Iterator[CountSession]:
        """A session for each of the files, open until the next one comes.

        Raises
        ------
        TypeError
            If the cells are tokenised and have no genes but those of the model.
        """
        msg = f"Counts of genes are needed, got {self.source}: cells that are tokenised."
        raise TypeError(msg)

    @abstractmethod
    def encoder(self) -> Callable[[Any], TokenBlock]:
        """The step from a block of the source to tokens."""

    def groups(self, groupby: str, argument: str = "groupby") -> pd.Categorical[Any]:
        """Values of a column of ``obs``; a KeyError that names the argument if it is not there."""
        import pandas as pd

        if groupby not in self.source.obs_columns:
            msg = f"{argument}={groupby!r} is not a column of obs; found {self.source.obs_columns}."
            raise KeyError(msg)
        return pd.Categorical(self.source.column(groupby))

    def run(
        self,
        task: Task,
        spans: Sequence[tuple[int, int]] | None = None,
        done_before: int = 0,
        sequences: int | None = None,
    ) -> RunStats:
        """Compute a task for cells; warns of empty and dropped cells.

        Parameters
        ----------
        task
            What to compute.
        spans
            Ranges of cells; all by default.
        done_before
            Further cells (or sequences), which an earlier run has done: progress is shown of all of them.
        sequences
            Number of sequences, if there are several for a cell and it is known: progress is shown of them.
        """
        encode = self.encoder()
        networks = self.networks()
        forwards = [task.make_forward(*place, self.dtype) for place in zip(networks, self.devices, strict=True)]
        plan = RunPlan(
            batch_tokens=task.batch_tokens or default_batch_tokens(self.device),
            block_rows=min(task.block_rows or settings.block_rows, settings.block_rows),
            block_values=settings.block_values,
            padded=self.device.type != "cpu" and getattr(networks[0], "pads", True),
            progress=settings.progress,
        )
        max_genes = self.model.max_genes(self.options)
        stats = run(self.source, encode, task, forwards, plan, max_genes, spans, done_before, sequences)
        self._report(stats, task)
        return stats

    def tokens(self) -> Iterator[TokenBlock]:
        """Read all cells once and encode them, a block ahead in a thread; nothing is computed of them."""
        return prefetch(self.encoded([(0, self.source.n_obs)]))

    def batches(
        self, batch_size: int = 64, *, shuffle: bool = False, seed: int = 0, drop_last: bool = False
    ) -> Iterator[TokenBatch]:
        """Read the cells once in batches, for training; nothing is computed of them.

        Memory is bounded: of shuffled cells, ranges of 1,024 consecutive ones are read in random order, and batches are
        drawn from 16 ranges at a time. Reading and encoding run ahead in a thread.

        Parameters
        ----------
        batch_size
            Cells of a batch. Those without tokens are left out.
        shuffle
            Draw the cells in random order instead of that of the source.
        seed
            Decides the order, alone: the same on every machine and with all settings.
        drop_last
            Leave the last batch out if it has fewer cells.

        Yields
        ------
        Batches, longest cell first; ``rows`` are positions in the source, with which to look up labels.

        Raises
        ------
        ValueError
            If ``batch_size`` is less than 1.
        """
        if not is_int(batch_size) or batch_size < 1:
            msg = f"batch_size={batch_size!r}: need 1 cell or more."
            raise ValueError(msg)
        rng = np.random.default_rng(seed) if shuffle else None
        spans = prefetch(list(self.encoded([span])) for span in row_ranges(self.source.n_obs, rng))
        return fixed_size_batches(spans, batch_size, rng, drop_last=drop_last)

    def encoded(self, spans: Iterable[tuple[int, int]]) -> Iterator[TokenBlock]:
        """Token sequences of ranges of cells, block by block; nothing is computed of them."""
        encode = self.encoder()
        for start, stop in spans:
            blocks = self.source.blocks(settings.block_rows, start=start, stop=stop, max_nnz=settings.block_values)
            yield from map(encode, blocks)

    def description(self) -> dict[str, Any]:
        """Everything needed to repeat the run, in types that every AnnData file format can store."""
        card, options = self.model.card, self.options
        return {
            "model": card.id,
            "family": self.model.family,
            "revision": card.revision,
            "weights_sha256": card.weights_sha256,
            "pooling": options.pooling,
            "hidden_layer": options.hidden_layer,
            "max_tokens": options.max_tokens,
            "compat": options.compat,
            "options": asdict(options.family),
            "matrix": self.source.matrix,
            "device": self._devices_text(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantize": options.quantize,
            "versions": {name: version_of(name) for name in ("scfm", "anndata", "numpy", "torch")},
        }

    def _devices_text(self) -> str:
        return ", ".join(map(str, self.devices))

    def params(self, stats: RunStats) -> dict[str, Any]:
        """The description, and how many cells went through, were cut, were empty, or left out."""
        return self.description() | counts_of(stats)

    def _report(self, stats: RunStats, task: Task) -> None:
        logger.info(
            "%s %d cells (%d tokens, %d cells cut to the longest input) on %s in %s: %.1f s, %.0f cells/s",
            task.done,
            stats.n_cells,
            stats.n_tokens,
            stats.n_truncated,
            self._devices_text(),
            str(self.dtype).removeprefix("torch.")
            + (f" with {self.options.quantize} weights" if self.options.quantize else ""),
            stats.seconds,
            stats.n_cells / max(stats.seconds, 1e-9),
        )
        for text in self._warnings(stats, task.empty_rows):
            warn(text)

    def _warnings(self, stats: RunStats, empty: str | None) -> list[str]:
        found = []
        if stats.n_empty:
            own = "those of an empty cell" if self.model.embeds_empty else "NaN, which sc.pp.neighbors refuses"
            by_value = (
                ""
                if self.model.embeds_empty or empty is not None
                else "adata[~np.isnan(adata.obsm[key]).any(axis=1)] or "
            )
            found.append(
                f"{stats.n_empty} of {stats.n_cells} cells hold no gene of the model; their rows are {empty or own}. "
                "scfm.pp.match_genes(adata, model) shows which genes match; drop such cells with "
                f"{by_value}sc.pp.filter_cells."
            )
        if stats.n_dropped:
            found.append(
                f"{stats.n_dropped} of {stats.n_cells} cells were left out by the options "
                f"{', '.join(self.model.dropping_options)}; their rows are NaN."
            )
        if 0 < stats.n_fractional < stats.n_cells - stats.n_empty:  # if all are, that was said when they were opened
            found.append(
                f"{stats.n_fractional} of {stats.n_cells} cells hold values that are not whole numbers, and the others "
                f"counts: a part of {self.source.matrix} may be normalised. The models are made for counts."
            )
        if stats.n_not_finite:
            found.append(
                f"{stats.n_not_finite} of {stats.n_cells} cells have results that are not finite although the model knows "
                "genes of them. Either its weights are damaged (load it again from its source), or numbers grew too "
                f"large for {str(self.dtype).removeprefix('torch.')} (dtype='float32')."
            )
        if stats.n_truncated and self.model.warns_truncated:
            found.append(
                f"{stats.n_truncated} of {stats.n_cells} cells express more than the "
                f"{self.model.max_genes(self.options):,} genes that the model takes; {self.model.warns_truncated}"
            )
        return found


@dataclass(frozen=True)
class CountSession(Session):
    """A pass over the counts of one object or file, whose genes were matched."""

    source: CountSource
    genes: GeneMap

    def files(self) -> Iterator[CountSession]:
        """The session itself, alone."""
        yield self

    def encoder(self) -> Callable[[CountBlock], TokenBlock]:
        """The step from counts to tokens."""
        return counting_fractional(self.model.encoder(self.source, self.genes, self.options))

    def columns_of(self, genes: Sequence[str] | None) -> NDArray[np.intp]:
        """Columns of the source that hold genes, by any of their names; all if none are given."""
        return columns_of(genes, self.source.var, self.genes.tokens, self.model.vocabulary)

    def columns_for(self, names: pd.Index) -> NDArray[np.intp]:
        """Columns of the source for the genes of the object, of which ``raw`` may have others, or other names for them.

        −1, and a UserWarning, for those that are not there.
        """
        var = self.source.var
        if names.equals(var.index):
            return np.arange(len(names))
        found = find_columns(names.tolist(), var, self.genes.tokens, self.model.vocabulary)
        missing = np.flatnonzero(found < 0)
        if len(missing):
            warn(
                f"{len(missing)} of {len(names)} genes in var_names are not in {self.source.matrix} by any name, such as "
                f"{names[missing[0]]!r}: there is no result for them."
            )
        return found

    def tokens_for(self, names: pd.Index) -> NDArray[np.int32]:
        """Token of each gene of the object, −1 for none; found and warned about as :meth:`columns_for` does."""
        columns = self.columns_for(names)
        return np.where(columns >= 0, self.genes.tokens[columns], -1).astype(np.int32)

    def attention(self) -> Iterator[CellAttention]:
        """Attention weights of each cell in the last of the layers."""
        own = zip(self.genes.tokens[::-1].tolist(), self.source.var.index[::-1], strict=True)
        names = {**self.model.vocabulary.token_names, **{token: str(name) for token, name in own if token >= 0}}
        network = self.networks()[0]
        for block in self.encoded([(0, self.source.n_obs)]):
            cells = np.split(block.tokens, block.offsets[1:-1])
            for tokens, weights in zip(cells, cell_weights(self.model, network, self.options, block), strict=True):
                called = [names.get(token, f"token {token}") for token in tokens.tolist()]
                yield CellAttention(np.array(called, dtype=str), weights)

    def description(self) -> dict[str, Any]:
        """As of every session, with how the genes matched and what the family adds."""
        extra = self.model.extra_params(self.source, self.options)
        return super().description() | {"genes": self.genes.report.as_dict(), **extra}
