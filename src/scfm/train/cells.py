"""Where the cells of a corpus come from: files with other genes, read in random order within a bound of memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scfm._text import some
from scfm._types import CountBlock
from scfm.batch.shuffle import RANGE_ROWS
from scfm.read import JoinedSource, paths_of
from scfm.read.errors import of_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    import pandas as pd
    from numpy.typing import NDArray

    from scfm.genes import GeneMap, MatchReport, Vocabulary
    from scfm.read import CountSource

__all__ = ["Corpus", "Draws", "Stream", "joined_blocks", "taken"]

MOST = 2**32 - 1
"""Largest count of a gene in a cell."""
SAMPLE = 256
"""Cells by which the size of a cell in memory is judged."""
SLOTS = 4096
"""Draws after which every file has had its share exactly, unless there are many files."""
ORDER, SHARES = 1, 2
"""Numbers that tell random streams of one seed apart."""


def joined_blocks(blocks: Sequence[CountBlock]) -> CountBlock:
    """Cells of several blocks, one after the other."""
    lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(block.indptr) for block in blocks)])
    return CountBlock(
        0,
        np.cumsum(lengths),
        np.concatenate([np.empty(0, np.int32), *(block.indices for block in blocks)]),
        np.concatenate([np.empty(0, np.uint8), *(block.data for block in blocks)]),
        np.concatenate([np.empty(0), *(block.totals for block in blocks)]),
    )


def taken(block: CountBlock, rows: NDArray[np.int64]) -> CountBlock:
    """Some cells of a block, in the order given."""
    lengths = np.diff(block.indptr)[rows]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    at = np.arange(indptr[-1]) + np.repeat(block.indptr[rows] - indptr[:-1], lengths)
    return CountBlock(0, indptr, block.indices[at], block.data[at], block.totals[rows])


def _of_vocabulary(block: CountBlock, columns: NDArray[np.int32], n_genes: int, *, sums: bool) -> CountBlock:
    """Counts by the position of their gene in the vocabulary, in the smallest type that holds them."""
    _check_counts(block)
    position = columns[block.indices]
    keep = (position >= 0) & (block.data != 0)
    indptr = np.concatenate([[0], np.cumsum(keep)])[block.indptr]
    indices, data = position[keep], block.data[keep]
    if sums:
        matrix = sparse.csr_matrix((data.astype(np.int64), indices, indptr), shape=(block.n_cells, n_genes))
        matrix.sum_duplicates()
        indices, data, indptr = matrix.indices.astype(np.int32), matrix.data, matrix.indptr.astype(np.int64)
    kind = np.min_scalar_type(int(data.max(initial=0)))
    return CountBlock(block.row0, indptr, indices, data.astype(kind), block.totals)


def _check_counts(block: CountBlock) -> None:
    values: NDArray[Any] = block.data
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero(~((values >= 0) & (values <= MOST) & (values == np.rint(values))))
    if len(bad):
        cell = block.row0 + int(np.searchsorted(block.indptr, bad[0], side="right")) - 1
        msg = (
            f"Cell {cell} holds {values[bad[0]]}. Models are trained on counts, which are whole numbers from 0 on: name the "
            "layer that holds them by layer=, or leave the file out."
        )
        raise ValueError(msg)


def _size(block: CountBlock) -> int:
    return block.indptr.nbytes + block.indices.nbytes + block.data.nbytes + block.totals.nbytes


class Corpus:
    """The files of a corpus, whose counts are read by the genes of one vocabulary.

    Parameters
    ----------
    files
        Paths, patterns, stores.
    vocabulary
        The genes.
    match
        Gives the genes of a file their tokens.
    open_file
        Opens one of the files and chooses its matrix.

    Raises
    ------
    ValueError
        If a file has no cells, or no gene of the vocabulary, or two files have one name.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        vocabulary: Vocabulary,
        match: Callable[[pd.DataFrame], GeneMap],
        open_file: Callable[[str], CountSource],
    ) -> None:
        paths = paths_of(files)
        self.names = [Path(str(path)).stem for path in paths]
        """Names of the files, without suffix."""
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            msg = f"Several files are named {some(repeated)}; files of a corpus are told apart by their names."
            raise ValueError(msg)
        self.n_genes = len(vocabulary.genes)
        self.panels = np.zeros((len(paths), self.n_genes), bool)
        """Genes of the vocabulary that each file has."""
        self.reports: list[MatchReport] = []
        """How the genes of each file met the vocabulary."""
        self._columns: list[NDArray[np.int32]] = []
        self._sums: list[bool] = []
        place = np.full(vocabulary.size, -1, np.int32)
        place[vocabulary.tokens] = np.arange(self.n_genes)

        def learn(source: CountSource) -> None:
            if not source.n_obs:
                msg = "The file has no cells; leave it out."
                raise ValueError(msg)
            genes = match(source.var)
            columns = np.where(genes.tokens >= 0, place[np.maximum(genes.tokens, 0)], np.int32(-1))
            self.panels[len(self._columns), columns[columns >= 0]] = True
            self._columns.append(columns)
            self._sums.append(genes.report.merged > 0)
            self.reports.append(genes.report)

        self.files = JoinedSource(paths, learn, open_file)
        self.files.close()

    @property
    def sizes(self) -> list[int]:
        """Number of cells of each file."""
        return self.files.sizes

    def number(self, name: str) -> int:
        """Number of a file by its name; a ValueError if there is none."""
        if name not in self.names:
            msg = f"{name!r} is none of the files; there are {some(self.names)}."
            raise ValueError(msg)
        return self.names.index(name)

    def read(self, number: int, spans: Sequence[tuple[int, int]]) -> CountBlock:
        """Read ranges of cells of a file."""
        with of_file(self.files.paths[number]), self.files.opened(number) as source:
            return joined_blocks(
                [
                    _of_vocabulary(
                        source.read(start, stop), self._columns[number], self.n_genes, sums=self._sums[number]
                    )
                    for first, last in spans
                    for start in range(first, last, RANGE_ROWS)
                    for stop in [min(start + RANGE_ROWS, last)]
                ]
            )

    def cell_bytes(self, number: int) -> float:
        """Bytes that a cell of a file takes in memory, by its first cells."""
        n = min(SAMPLE, self.sizes[number])
        return _size(self.read(number, [(0, n)])) / n

    def labels(self, key: str) -> tuple[list[NDArray[np.int64]], list[str]]:
        """Codes of the labels of the cells of each file, −1 for none and for unknown, and the labels, sorted.

        Raises
        ------
        KeyError
            If no file has the column.
        """
        columns: list[Any] = []
        for number, path in enumerate(self.files.paths):
            with of_file(path), self.files.opened(number) as source:
                columns.append(source.column(key).astype("string") if key in source.obs_columns else None)
        names = sorted(
            {label for column in columns if column is not None for label in column.dropna().unique()} - {"unknown", ""}
        )
        if not names:
            msg = f"labels_key={key!r} is a column with labels in none of the {len(columns)} files."
            raise KeyError(msg)
        code = {name: at for at, name in enumerate(names)}
        codes = [
            np.full(size, -1) if column is None else np.array([code.get(label, -1) for label in column.fillna("")])
            for column, size in zip(columns, self.sizes, strict=True)
        ]
        return codes, names


@dataclass(frozen=True)
class _Group:
    """Cells that are in memory together."""

    block: CountBlock
    starts: dict[int, int]
    """Place in the block of the first cell of each range of the file."""

    def place(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        first = np.array([self.starts[int(at)] for at in rows // RANGE_ROWS])
        return first + rows % RANGE_ROWS


class Stream:
    """The training cells of a file, epoch after epoch, each in an order of its own that the seed decides.

    Ranges of consecutive cells are read in random order, and cells of as many as fit into ``held`` cells are shuffled; a file
    that fits as a whole is read once.

    Parameters
    ----------
    corpus, number
        The file.
    rows
        Its cells that are trained on, sorted.
    held
        Cells that may be in memory.
    seed
        Decides the order.
    """

    def __init__(self, corpus: Corpus, number: int, rows: NDArray[np.int64], held: int, seed: int) -> None:
        self._corpus, self._number, self._seed = corpus, number, seed
        self.n_cells = len(rows)
        self._is_whole = held >= corpus.sizes[number]
        self._ranges = np.split(rows, np.flatnonzero(np.diff(rows // RANGE_ROWS)) + 1)
        self._per_group = len(self._ranges) if self._is_whole else max(1, held // (2 * RANGE_ROWS))
        self._orders: dict[int, list[NDArray[np.int64]]] = {}
        self._groups: dict[tuple[int, int], Future[_Group]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="scfm-read")

    def take(self, places: NDArray[np.int64]) -> tuple[CountBlock, NDArray[np.int64]]:
        """Cells at ascending places of the endless sequence, and their positions in the file."""
        blocks, rows = [], []
        epochs, at = np.divmod(places, self.n_cells)
        for epoch in np.unique(epochs).tolist():
            order, here = self._order(epoch), at[epochs == epoch]
            starts = np.cumsum([0, *map(len, order)])
            numbers = np.searchsorted(starts, here, side="right") - 1
            for number in np.unique(numbers).tolist():
                wanted = order[number][here[numbers == number] - starts[number]]
                group = self._group(epoch, number)
                blocks.append(taken(group.block, group.place(wanted)))
                rows.append(wanted)
        return joined_blocks(blocks), np.concatenate(rows)

    def close(self) -> None:
        """Wait for what is being read, and forget it."""
        self._reader.shutdown(cancel_futures=True)
        self._groups = {}

    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        """Cells of each group of an epoch, in order."""
        if epoch not in self._orders:
            rng = np.random.default_rng((self._seed, ORDER, self._number, epoch))
            ranges = [self._ranges[at] for at in rng.permutation(len(self._ranges))]
            groups = [ranges[at : at + self._per_group] for at in range(0, len(ranges), self._per_group)]
            order = [rng.permutation(np.concatenate(group)) for group in groups]
            self._orders = {known: self._orders[known] for known in self._orders if known >= epoch - 1} | {epoch: order}
        return self._orders[epoch]

    def _group(self, epoch: int, number: int) -> _Group:
        """Cells of a group; the next one is read meanwhile."""
        if self._is_whole:
            epoch = number = 0
        key, wanted = (epoch, number), [(epoch, number)]
        if not self._is_whole:
            wanted.append((epoch, number + 1) if number + 1 < len(self._order(epoch)) else (epoch + 1, 0))
        loaded = {
            one: self._groups.get(one) or self._reader.submit(self._read, self._order(one[0])[one[1]]) for one in wanted
        }
        self._groups = loaded
        return loaded[key].result()

    def _read(self, rows: NDArray[np.int64]) -> _Group:
        size = self._corpus.sizes[self._number]
        ranges = range(-(-size // RANGE_ROWS)) if self._is_whole else np.unique(rows // RANGE_ROWS).tolist()
        spans = [(at * RANGE_ROWS, min((at + 1) * RANGE_ROWS, size)) for at in ranges]
        starts = np.cumsum([0, *(stop - start for start, stop in spans)]).tolist()
        return _Group(self._corpus.read(self._number, spans), dict(zip(ranges, starts, strict=False)))


class Draws:
    """Which cells a step sees: a function of the seed and the number of the draw alone.

    Of every :data:`SLOTS` draws, or a few more, each file has the same number, its share, in random order; within its
    share the cells of a file follow its stream.

    Parameters
    ----------
    streams
        The cells of each file.
    power
        Files are drawn by their number of cells to this power.
    run
        Consecutive draws that are of one file.
    seed
        Decides the order.
    """

    def __init__(self, streams: Sequence[Stream], power: float, run: int, seed: int) -> None:
        self._streams, self._run, self._seed = streams, run, seed
        weights = np.array([stream.n_cells for stream in streams], float) ** power
        self.shares = weights / weights.sum()
        n_runs = max(-(-SLOTS // run), 4 * len(streams))
        self._n = n_runs * run
        exact = self.shares * n_runs
        quotas = np.maximum(exact.astype(int), 1)
        while (missing := n_runs - int(quotas.sum())) != 0:
            at = np.argsort(quotas - exact, kind="stable")[:: np.sign(missing)][: abs(missing)]
            at = at if missing > 0 else at[quotas[at] > 1]
            quotas[at] += np.sign(missing)
        self._quotas = quotas
        self._window: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def __call__(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """File of each draw, and its place in the stream of the file."""
        parts = []
        for window in range(start // self._n, -(-stop // self._n)):
            first = window * self._n
            files, places = self._of_window(window)
            part = slice(max(start - first, 0), stop - first)
            parts.append((files[part], places[part]))
        return np.concatenate([files for files, _ in parts]), np.concatenate([places for _, places in parts])

    def cells(self, files: NDArray[np.int64], places: NDArray[np.int64]) -> tuple[CountBlock, NDArray[np.int64]]:
        """Counts of draws, and their positions in their files."""
        order = np.argsort(files, kind="stable")
        parts = [self._streams[file].take(places[files == file]) for file in np.unique(files).tolist()]
        back = np.argsort(order, kind="stable")
        return taken(joined_blocks([block for block, _ in parts]), back), np.concatenate([rows for _, rows in parts])[
            back
        ]

    def close(self) -> None:
        """Stop reading ahead."""
        for stream in self._streams:
            stream.close()

    def _of_window(self, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._window is None or self._window[0] != window:
            rng = np.random.default_rng((self._seed, SHARES, window))
            files = np.repeat(rng.permutation(np.repeat(np.arange(len(self._quotas)), self._quotas)), self._run)
            order = np.argsort(files, kind="stable")
            places = np.empty_like(files)
            places[order] = np.concatenate([window * n + np.arange(n) for n in (self._quotas * self._run).tolist()])
            self._window = window, files, places
        return self._window[1], self._window[2]
