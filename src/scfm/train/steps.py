"""The batches of a training step: cells are drawn, shown as views, encoded, masked and packed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from scfm._types import TokenBatch
from scfm.batch import make_batch, ranges_of
from scfm.train.cells import joined_blocks, taken
from scfm.train.objective import IGNORED, TrainingBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scfm._types import CountBlock, TokenBlock
    from scfm.genes import Vocabulary
    from scfm.train.cells import Corpus, Draws
    from scfm.train.masking import Masking
    from scfm.train.views import Views

__all__ = ["Steps"]

TRAINED, JUDGED = 3, 4
"""Numbers that tell random streams of one seed apart."""


@dataclass(frozen=True)
class Steps:
    """Makes the batches of a step, as a function of the seed and the number of the step alone.

    Parameters
    ----------
    corpus, draws
        Where cells come from.
    vocabulary
        Genes of the model.
    encode
        The step from counts by the position of genes in the vocabulary to tokens.
    n_views
        Sequences that are made of a cell.
    views, masking
        How a sequence differs from the cell; ``None``: not at all.
    batch_cells, batch_tokens
        Cells of a step, and tokens of a batch.
    unit
        Cells that are in one process and one batch together.
    labels
        Codes of the cells of each file.
    seed
        Decides what is drawn.
    """

    corpus: Corpus
    draws: Draws
    vocabulary: Vocabulary
    encode: Callable[[CountBlock], TokenBlock]
    n_views: int
    views: Views | None
    masking: Masking | None
    batch_cells: int
    batch_tokens: int
    unit: int
    labels: Sequence[NDArray[np.int64]] | None
    seed: int

    def batches(self, step: int, rank: int = 0, n_ranks: int = 1) -> list[TrainingBatch]:
        """Batches of a step that belong to one of the processes."""
        n = 1 if self.views is None else self.views.cells_per_panel
        first = step * self.batch_cells
        files, places = self.draws(first, first + self.batch_cells)
        mine = np.flatnonzero(np.arange(self.batch_cells) // self.unit % n_ranks == rank)
        block, rows = self.draws.cells(files[mine], places[mine])
        keys = [(self.seed, TRAINED, draw) for draw in (first + mine[::n]).tolist()]
        return self._packed(block, n, files[mine], keys, self._labels(files[mine], rows))

    def judged(self, file: int, rows: NDArray[np.int64]) -> list[TrainingBatch]:
        """Batches of some cells of a file, the same whenever they are asked for."""
        block = self.corpus.read(file, ranges_of(rows))
        keys = [(self.seed, JUDGED, file, row) for row in rows.tolist()]
        files = np.full(len(rows), file)
        return self._packed(block, 1, files, keys, self._labels(files, rows))

    def _labels(self, files: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        if self.labels is None:
            return None
        return np.array([self.labels[file][row] for file, row in zip(files.tolist(), rows.tolist(), strict=True)])

    def _packed(
        self,
        block: CountBlock,
        n: int,
        files: NDArray[np.int64],
        keys: Sequence[tuple[int, ...]],
        labels: NDArray[np.int64] | None,
    ) -> list[TrainingBatch]:
        """Sequences of cells, of which ``n`` at a time have one random stream, in batches."""
        blocks, rngs = [], []
        for view in range(self.n_views):
            for unit, key in enumerate(keys):
                cells = slice(unit * n, (unit + 1) * n)
                rng = np.random.default_rng((*key, view))
                blocks.append(self._view(block, np.arange(cells.start, cells.stop), files[cells], rng, (view, key)))
                rngs.append(rng)
        encoded = self.encode(joined_blocks(blocks))
        shown, targets = encoded.tokens.copy(), np.full(len(encoded.tokens), IGNORED, np.int32)
        if self.masking is not None:
            for unit, rng in enumerate(rngs):
                part = slice(*encoded.offsets[[unit * n, (unit + 1) * n]])
                lengths = np.diff(encoded.offsets[unit * n : (unit + 1) * n + 1])
                masked = self.masking(TokenBatch(np.arange(n), shown[part].astype(np.int64), lengths), rng)
                shown[part], targets[part] = masked.batch.tokens, masked.targets
        return [self._batch(encoded, shown, targets, files, labels, cells) for cells in self._parts(encoded)]

    def _view(
        self,
        block: CountBlock,
        rows: NDArray[np.int64],
        files: NDArray[np.int64],
        rng: np.random.Generator,
        half: tuple[int, tuple[int, ...]],
    ) -> CountBlock:
        cells = taken(block, rows)
        if self.views is None:
            return cells
        panels = self.corpus.panels
        measured = np.where(panels[files].any(axis=0), self.vocabulary.tokens, -1)
        known = self._panels_by_token if self.views.foreign else None
        return self.views(cells, measured, rng, known, (half[0], np.random.default_rng(half[1])))

    @cached_property
    def _panels_by_token(self) -> NDArray[np.bool_]:
        panels = np.zeros((len(self.corpus.panels), self.vocabulary.size), bool)
        panels[:, self.vocabulary.tokens] = self.corpus.panels
        return panels

    def _parts(self, encoded: TokenBlock) -> list[NDArray[np.int64]]:
        """Cells of each batch; those without tokens in one of their views are left out.

        Where no loss compares cells, those of a batch are of similar length, so that attention is padded less.
        """
        lengths = np.diff(encoded.offsets).reshape(self.n_views, -1)
        cells = np.flatnonzero(lengths.all(axis=0))
        units = cells // self.unit
        order = np.unique(units)
        if self.n_views == 1:
            longest = np.zeros(order.max(initial=-1) + 1, np.int64)
            np.maximum.at(longest, units, lengths[0, cells])
            order = order[np.argsort(-longest[order], kind="stable")]
        parts: list[list[NDArray[np.int64]]] = []
        size = 0
        for unit in order.tolist():
            own = cells[units == unit]
            n_tokens = int(lengths[:, own].sum())
            if not parts or size + n_tokens > self.batch_tokens:
                parts.append([])
                size = 0
            parts[-1].append(own)
            size += n_tokens
        return [np.concatenate(part) for part in parts]

    def _batch(
        self,
        encoded: TokenBlock,
        shown: NDArray[np.int32],
        targets: NDArray[np.int32],
        files: NDArray[np.int64],
        labels: NDArray[np.int64] | None,
        cells: NDArray[np.int64],
    ) -> TrainingBatch:
        """Sequences of some cells, longest first."""
        n_cells = (len(encoded.offsets) - 1) // self.n_views
        sequences = (np.arange(self.n_views)[:, None] * n_cells + cells).ravel()
        lengths = np.diff(encoded.offsets)[sequences]
        sequences = sequences[np.argsort(-lengths, kind="stable")]
        views, rows = np.divmod(sequences, n_cells)
        batch = make_batch(replace(encoded, tokens=shown), sequences)
        batch = TokenBatch(rows, batch.tokens, batch.lengths, batch.values, views)
        wanted = make_batch(replace(encoded, tokens=targets, values=None), sequences).tokens
        return TrainingBatch(batch, wanted, None if labels is None else labels[rows], files[rows])
