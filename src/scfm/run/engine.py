"""The loop: blocks of cells in, batches through the network, results into a sink."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from threading import Lock
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from scfm.batch import plan_batches, prefetch
from scfm.run.progress import progress_bar
from scfm.run.transfer import HostCopy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from scfm._types import TokenBatch, TokenBlock
    from scfm.read import Source
    from scfm.run.progress import Advance

__all__ = ["Forward", "Job", "RunPlan", "RunStats", "Sink", "run"]

logger = logging.getLogger(__name__)

Block = TypeVar("Block")
Forward = Callable[["TokenBatch"], "Tensor"]
"""A forward pass: from a batch to what a sink takes."""


@dataclass(frozen=True)
class RunPlan:
    """Sizes of blocks and batches."""

    batch_tokens: int
    """Token budget of a batch."""
    block_rows: int = 4096
    """Most cells of a block."""
    block_values: int | None = None
    """Most stored values of a block."""
    padded: bool = False
    """Whether the network pads a batch to its longest cell."""
    progress: bool | None = None
    """Show a progress bar; ``None``: on terminals and in notebooks, and a line now and then elsewhere."""


@dataclass
class RunStats:
    """Counters of a run."""

    n_cells: int = 0
    """Cells read."""
    n_tokens: int = 0
    """Tokens computed."""
    n_truncated: int = 0
    """Cells with more model genes than the model takes."""
    n_empty: int = 0
    """Cells without a model gene."""
    n_dropped: int = 0
    """Cells that an option of the model left out."""
    n_fractional: int = 0
    """Cells with a count that is not a whole number."""
    n_not_finite: int = 0
    """Cells with tokens for which the network gave NaN or infinity."""
    batch_tokens: int = 0
    """Token budget at the end; lower than planned if memory ran out."""
    seconds: float = 0.0
    """Wall time."""


class Sink(Protocol):
    """Receives what the network returns for a batch."""

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Store the output of one batch; called once a batch, in any order of the rows of a block."""

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Called when all cells of the run before ``stop`` are done, with the counters so far."""


class Job(Protocol):
    """What the loop needs of a task; see :class:`scfm.tasks.Task`."""

    @property
    def sink(self) -> Sink:
        """Receives the results."""

    def edit(self, block: TokenBlock) -> Iterable[TokenBlock]:
        """Yield the sequences to compute for the cells of a block."""

    def shrink(self, batch: TokenBatch) -> bool:
        """Lower the memory that the task itself needs for a batch; ``False`` if only a smaller batch helps."""


def run(
    source: Source[Block],
    encode: Callable[[Block], TokenBlock],
    job: Job,
    forwards: Sequence[Forward],
    plan: RunPlan,
    max_genes: int,
    spans: Sequence[tuple[int, int]] | None = None,
    done_before: int = 0,
    sequences: int | None = None,
) -> RunStats:
    """Send the cells of a source through a network.

    Reading and encoding each run one block ahead, in background threads. When memory runs out and the task cannot
    shrink, the token budget is halved and the batch is split; only a single sequence that does not fit is an error.

    Parameters
    ----------
    source
        Counts, or tokens.
    encode
        Turns a block of the source into tokens.
    job
        Task: edits the sequences and holds the sink.
    forwards
        Forward pass on each device, called under ``torch.inference_mode``, each in its own thread; the devices share
        the batches of a block.
    plan
        Sizes.
    max_genes
        Genes of a cell that the encoder keeps; cells with more count as truncated.
    spans
        Consecutive ranges of cells; no block or batch crosses their borders. All cells by default.
    done_before
        Number of further cells (or sequences) that an earlier run has done; the progress shown includes them.
    sequences
        Number of sequences with tags from 0 on; if it is known, progress is shown of them, and not of cells.
    """
    stats = RunStats(batch_tokens=plan.batch_tokens)
    began = time.perf_counter()
    spans = [(0, source.n_obs)] if spans is None else spans
    blocks = chain.from_iterable(
        source.blocks(plan.block_rows, start=start, stop=stop, max_nnz=plan.block_values) for start, stop in spans
    )
    total = done_before + (sum(stop - start for start, stop in spans) if sequences is None else sequences)
    unit = "cell" if sequences is None else "sequence"
    with progress_bar(total, plan.progress, done_before, unit) as advance, ThreadPoolExecutor(len(forwards)) as pool:
        for block in prefetch(map(encode, prefetch(blocks))):
            done, bad = 0, set[int]()
            for edited in job.edit(block):
                batches = plan_batches(edited, stats.batch_tokens, padded=plan.padded)
                one_each = edited.rows is None  # otherwise the number of sequences is not the number of cells
                shown = one_each or sequences is not None
                work = _SharedBatches(block, batches, job, stats, bad, advance if shown else None)
                if len(forwards) == 1:
                    work.compute(forwards[0])
                else:
                    list(pool.map(work.compute, forwards))
                done += int(np.count_nonzero(np.diff(edited.offsets))) if one_each else 0
                stats.n_tokens += len(edited.tokens)
            if sequences is None:
                advance(block.n_cells - done)
            stats.n_cells += block.n_cells
            stats.n_truncated += int(np.count_nonzero(block.n_genes > max_genes))
            stats.n_fractional += block.n_fractional
            stats.n_dropped += int(np.count_nonzero(block.n_genes < 0))
            stats.n_empty += int(np.count_nonzero(block.n_genes == 0))
            stats.n_not_finite += len(bad)
            job.sink.end_block(block.row0 + block.n_cells, stats)
    stats.seconds = time.perf_counter() - began
    return stats


class _SharedBatches:
    """The batches of a block, shared by the networks of one or more devices; ``bad`` takes the cells that are not finite."""

    def __init__(
        self,
        block: TokenBlock,
        batches: Iterator[TokenBatch],
        job: Job,
        stats: RunStats,
        bad: set[int],
        advance: Advance | None,
    ) -> None:
        self._block, self._bad = block, bad
        self._batches, self._job, self._stats, self._advance = batches, job, stats, advance
        self._lock = Lock()

    def compute(self, forward: Forward) -> None:
        """Compute batches until none is left; a result is fetched while the next one is computed."""
        import torch

        pending: HostCopy | None = None
        with torch.inference_mode():
            while (batch := self._next()) is not None:
                for part, output in _outputs(batch, forward, self._job, self._stats):
                    self._deliver(pending)
                    pending = HostCopy(part, output)
                    if pending.is_ready:
                        self._deliver(pending)
                        pending = None
            self._deliver(pending)

    def _next(self) -> TokenBatch | None:
        with self._lock:
            return next(self._batches, None)

    def _deliver(self, pending: HostCopy | None) -> None:
        if pending is None:
            return
        output = pending.wait()
        with self._lock:
            self._job.sink.write(pending.batch, output)
            self._bad |= _not_finite(pending.batch, output, self._block)
            if self._advance is not None:
                tags = pending.batch.tags
                self._advance(len(pending.batch.rows) if tags is None else int(np.count_nonzero(tags >= 0)))


def _outputs(batch: TokenBatch, forward: Forward, job: Job, stats: RunStats) -> Iterator[tuple[TokenBatch, Tensor]]:
    """Yield the outputs of a batch, or of the parts that fit into memory."""
    waiting = [batch]
    while waiting:
        part = waiting.pop()
        if len(part.tokens) > stats.batch_tokens and len(part.rows) > 1:
            waiting += reversed(part.split())
            continue
        try:
            output = forward(part)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            less = job.shrink(part)
            if not less and len(part.rows) == 1:
                msg = (
                    f"Cell {part.rows[0]} with {len(part.tokens)} tokens does not fit into memory by itself. Lower "
                    "max_tokens=, or use dtype='bfloat16' or another device=."
                )
                raise MemoryError(msg) from error
        else:
            yield part, output
            continue
        _free_memory()
        if not less:
            stats.batch_tokens = max(1, min(stats.batch_tokens, len(part.tokens) // 2))
            logger.warning("Out of memory: continuing with %d tokens per batch.", stats.batch_tokens)
        waiting.append(part)


def _not_finite(batch: TokenBatch, output: Tensor, block: TokenBlock) -> set[int]:
    """Cells with genes and with NaN or infinity among their values, or those of their tokens."""
    import torch

    if bool(torch.isfinite(output.sum(dtype=torch.float32))):  # one pass, and no second one where all is well
        return set()
    bad = ~torch.isfinite(output).flatten(1).all(dim=1).cpu().numpy()
    cells = batch.rows if len(bad) == len(batch.rows) else np.repeat(batch.rows, batch.lengths)
    found = np.unique(cells[bad])
    return set(found[block.n_genes[found - block.row0] != 0].tolist())


def _out_of_memory(error: Exception) -> bool:
    """Whether an error means that a device ran out of memory."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)  # the CPU allocator and MPS raise a plain RuntimeError
    return "out of memory" in text or "can't allocate memory" in text


def _free_memory() -> None:
    """Release the memory that torch's allocators cache."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
