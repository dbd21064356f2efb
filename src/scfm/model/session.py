"""One pass of a model over a data set: what is common to embedding, scoring and gene embeddings."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from scfm._settings import settings
from scfm._warn import warn
from scfm.genes import columns_of
from scfm.run import RunPlan, run
from scfm.run.device import default_batch_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from scfm._types import CountBlock, TokenBatch, TokenBlock
    from scfm.genes import GeneMap
    from scfm.model.recipe import Recipe, RunOptions
    from scfm.read import CountSource, Source
    from scfm.run import RunStats, Sink

    Forward = Callable[[torch.nn.Module, TokenBatch], Any]

__all__ = ["CountSession", "Session", "counts_of"]

logger = logging.getLogger("scfm")


def counts_of(stats: RunStats) -> dict[str, int]:
    """How many cells went through, were cut, were empty, or left out by an option, as it is stored."""
    counts = {"n_cells": stats.n_cells, "n_cells_truncated": stats.n_truncated, "n_cells_empty": stats.n_empty}
    return counts | ({"n_cells_dropped": stats.n_dropped} if stats.n_dropped else {})


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
        return self.model.networks(self.options.n_layers, self.devices, self.dtype)

    @abstractmethod
    def encoder(self) -> Callable[[Any], TokenBlock]:
        """The step from a block of the source to tokens."""

    def groups(self, groupby: str) -> pd.Categorical[Any]:
        """Values of a column of ``obs``; a KeyError if it is not there."""
        import pandas as pd

        if groupby not in self.source.obs_columns:
            msg = f"groupby={groupby!r} is not a column of obs; found {self.source.obs_columns}."
            raise KeyError(msg)
        return pd.Categorical(self.source.column(groupby))

    def into(
        self,
        sink: Sink,
        forward: Forward | None = None,
        *,
        block_rows: int | None = None,
        batch_tokens: int | None = None,
        spans: Sequence[tuple[int, int]] | None = None,
        empty: str | None = None,
    ) -> RunStats:
        """Send cells through the network into a sink; warns of empty and dropped cells.

        Parameters
        ----------
        sink
            Takes the results.
        forward
            What to compute of a batch, by default what :meth:`FoundationModel.forward` does.
        block_rows
            Most cells that are read at a time, by default as in the settings.
        batch_tokens
            Token budget of a batch, by default that of the device.
        spans
            Ranges of cells; all by default.
        empty
            What the rows of cells without genes are, for the warning, if not what the model says.
        """
        encode = self.encoder()
        if forward is not None and len(self.devices) > 1:
            msg = f"Only embeddings of cells are computed on several devices; choose one of {self._devices_text()}."
            raise ValueError(msg)
        forwards = [partial(self._step, forward, network) for network in self.networks()]
        plan = RunPlan(
            batch_tokens=batch_tokens or default_batch_tokens(self.device),
            block_rows=settings.block_rows if block_rows is None else min(block_rows, settings.block_rows),
            block_values=settings.block_values,
            padded=self.device.type != "cpu" and getattr(self.networks()[0], "pads", True),
            progress=settings.progress,
        )
        stats = run(self.source, encode, forwards, sink, plan, self.model.max_genes(self.options), spans)
        self._report(stats, empty)
        return stats

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
            "versions": {name: version(name) for name in ("scfm", "anndata", "numpy", "torch")},
        }

    def _step(self, forward: Forward | None, network: torch.nn.Module, batch: TokenBatch) -> Any:
        return self.model.forward(network, batch, self.options) if forward is None else forward(network, batch)

    def _devices_text(self) -> str:
        return ", ".join(map(str, self.devices))

    def params(self, stats: RunStats) -> dict[str, Any]:
        """The description, and how many cells went through, were cut, were empty, or left out."""
        return self.description() | counts_of(stats)

    def _report(self, stats: RunStats, empty: str | None) -> None:
        logger.info(
            "embedded %d cells (%d tokens, %d cells cut to the longest input) on %s in %s: %.1f s, %.0f cells/s",
            stats.n_cells,
            stats.n_tokens,
            stats.n_truncated,
            self._devices_text(),
            str(self.dtype).removeprefix("torch."),
            stats.seconds,
            stats.n_cells / max(stats.seconds, 1e-9),
        )
        for text in self._warnings(stats, empty):
            warn(text)

    def _warnings(self, stats: RunStats, empty: str | None) -> list[str]:
        found = []
        if stats.n_empty:
            own = "those of an empty cell" if self.model.embeds_empty else "NaN, which sc.pp.neighbors refuses"
            by_value = "" if self.model.embeds_empty else "adata[~np.isnan(adata.obsm[key]).any(axis=1)] or "
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

    def encoder(self) -> Callable[[CountBlock], TokenBlock]:
        """The step from counts to tokens."""
        return self.model.encoder(self.source, self.genes, self.options)

    def columns_of(self, genes: Sequence[str] | None) -> NDArray[np.intp]:
        """Columns of the source that hold genes, by any of their names; all if none are given."""
        return columns_of(genes, self.source.var, self.genes.tokens, self.model.vocabulary)

    def description(self) -> dict[str, Any]:
        """As of every session, with how the genes matched and what the family adds."""
        extra = self.model.extra_params(self.source, self.options)
        return super().description() | {"genes": self.genes.report.as_dict(), **extra}
