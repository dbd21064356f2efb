"""What a change of its genes does to the embedding of a cell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scfm._types import TokenBlock
from scfm.tasks.task import SupportsForward, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.run import RunStats
    from scfm.tasks.perturbations import Perturbations

__all__ = ["Effects", "Perturb", "SupportsRanks"]

COPY_TOKENS = 2**20
"""Tokens of the changed copies that are made at a time."""
STATE_BYTES = 2**28
"""Of the states of unchanged cells that are kept while their copies are computed."""
WHOLE = -1
"""Tag of a cell as it is."""


class SupportsRanks(SupportsForward, Protocol):
    """What this task asks of the recipe of a model."""

    @property
    def n_features(self) -> int:
        """Width of an embedding."""

    def rank_frame(self) -> tuple[int, int]:
        """Tokens before and after the genes of a cell, −1 for none."""

    def max_genes(self, options: Any) -> int:
        """Genes of a cell that the model takes."""


@dataclass(frozen=True)
class _Cell:
    """What is kept of a cell as it is."""

    genes: NDArray[np.int64]
    vector: Tensor
    """Its embedding, or under ``pooling="mean"`` the sum of the states of its genes; shape ``(n_features,)``."""
    states: Tensor | None = None
    """States of its genes, shape ``(n_genes, n_features)``, where they are read."""


class Perturb(Task):
    """How far changes of its genes move the embedding of a cell, and where to.

    The effect of a change is ``1 − cos(e′, e)``, with ``e`` the embedding of the cell and ``e′`` that of the changed
    copy; with target states ``S``, it is ``cos(e′, S) − cos(e, S)`` for each of them. Under ``pooling="mean"``, ``e`` and
    ``e′`` are means over the genes that cell and copy have in common and that were not changed: what counts is that the
    context changes, not that a gene is missing from a mean.

    Under ``compat="upstream"``, as Geneformer's ``InSilicoPerturber`` has it: means are over the whole sequences;
    without targets, the effect under ``"mean"`` is one minus the mean cosine of the states of the genes that are left; and
    a cell is shortened where its copy is too long.

    Parameters
    ----------
    recipe, options
        The model, and the options of the run; its pooling is that of the embedding.
    perturbations
        What is changed.
    targets
        Vectors of states, shape ``(n_states, n_features)``; ``None`` for the distance from the cell itself.
    gene_effects
        Called for each copy with its tag, the tokens of the genes that were not changed, and one minus the cosine of the
        states of each in cell and copy.
    embeddings
        Keep the embeddings of cells and copies.
    """

    empty_rows = "without effects"

    def __init__(
        self,
        recipe: SupportsRanks,
        options: Any,
        perturbations: Perturbations,
        targets: NDArray[Any] | None = None,
        gene_effects: Callable[[int, NDArray[np.int64], NDArray[np.float64]], None] | None = None,
        *,
        embeddings: bool = False,
    ) -> None:
        self.effects = Effects(1 if targets is None else len(targets), recipe.n_features if embeddings else 0)
        super().__init__(self.effects)
        self._recipe, self._options, self._perturbations = recipe, options, perturbations
        self._targets = None if targets is None else _unit(np.asarray(targets, np.float64))
        self._mean, self._upstream = options.pooling == "mean", options.compat == "upstream"
        self._mean_of_cosines = self._mean and self._upstream and targets is None
        self._gene_effects = gene_effects
        self._reads_genes = self._mean or gene_effects is not None
        self._cells: dict[tuple[int, int], _Cell] = {}
        self._frame = [np.asarray([token] if token >= 0 else [], np.int32) for token in recipe.rank_frame()]
        self._max_genes = recipe.max_genes(options)
        if self._reads_genes:
            self.block_rows = max(1, STATE_BYTES // (4 * self._max_genes * recipe.n_features))

    def edit(self, block: TokenBlock) -> Iterator[TokenBlock]:
        """The cells as they are, then their changed copies."""
        self._cells.clear()
        rows = block.row0 + np.arange(block.n_cells)
        yield replace(block, rows=rows, tags=np.full(block.n_cells, WHOLE))
        shortened, copies = _Sequences(block.row0, self._frame), _Sequences(block.row0, self._frame)
        for row, sequence in zip(rows.tolist(), np.split(block.tokens, block.offsets[1:-1]), strict=True):
            genes = self._genes_of(sequence)
            for tag, after in self._perturbations.of(genes, self._max_genes):
                cut = self._n_cut(genes, tag)
                if cut:
                    shortened.add(row, WHOLE - 1 - tag, genes[: len(genes) - cut])
                copies.add(row, tag, after)
                if copies.n_tokens >= COPY_TOKENS:
                    yield from (shortened.block(), copies.block())
        yield from (shortened.block(), copies.block())

    def count(self, block: TokenBlock) -> NDArray[np.int64]:
        """Number of the changed copies of each cell of a block, and of their tokens (as if none were lost or added)."""
        counts = [
            (self._perturbations.count(self._genes_of(sequence)), len(sequence))
            for sequence in np.split(block.tokens, block.offsets[1:-1])
        ]
        return np.asarray([(n, n * length) for n, length in counts], np.int64).reshape(-1, 2)

    def make_forward(
        self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype
    ) -> Callable[[TokenBatch], Tensor]:
        """Effects of the sequences of a batch, float64, 0 for cells as they are; beside them their embeddings, if kept."""
        options = replace(self._options, pooling="gene") if self._reads_genes else self._options

        def compute(batch: TokenBatch) -> Tensor:
            import torch

            assert batch.tags is not None
            output = self._recipe.forward(network, batch, options)
            outputs = list(output.split(batch.lengths.tolist()) if self._reads_genes else output)
            genes = [self._genes_of(tokens) for tokens in np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])]
            keys = list(zip(batch.rows.tolist(), batch.tags.tolist(), strict=True))
            if keys[0][1] < 0:  # cells as they are come in blocks of their own
                self._cells |= {key: self._kept(*one) for key, *one in zip(keys, genes, outputs, strict=True)}
                effects = np.zeros((len(keys), self.effects.n_effects))
            else:
                effects = self._effects_of(keys, genes, outputs)
            if self.effects.n_features:
                effects = np.hstack([effects, _array(map(self._vector, outputs))])
            return torch.from_numpy(effects)

        return compute

    def _genes_of(self, tokens: Any) -> Any:
        """Of what has an entry for every token of a sequence, the entries of its genes."""
        return tokens[len(self._frame[0]) : len(tokens) - len(self._frame[1])]

    def _vector(self, output: Tensor) -> Tensor:
        """Embedding of a sequence."""
        if self._mean:
            return self._genes_of(output).float().mean(dim=0)
        return output[0] if self._reads_genes else output

    def _kept(self, genes: NDArray[np.int64], output: Tensor) -> _Cell:
        if not self._reads_genes:
            return _Cell(genes, output)
        states = self._genes_of(output)
        return _Cell(genes, states.float().sum(dim=0) if self._mean else self._vector(output), states)

    def _effects_of(
        self, keys: list[tuple[int, int]], genes: list[NDArray[np.int64]], outputs: list[Tensor]
    ) -> NDArray[np.float64]:
        cells = [self._cells.get((row, WHOLE - 1 - tag), self._cells[row, WHOLE]) for row, tag in keys]
        copies = list(zip((tag for _, tag in keys), cells, genes, outputs, strict=True))
        if self._gene_effects is not None or self._mean_of_cosines:
            cosines = [self._cosines(*copy) for copy in copies]
            if self._mean_of_cosines:
                return np.asarray([[1 - one.mean()] for one in cosines])
        if self._mean:
            pairs = [self._means(*copy) for copy in copies]
        else:
            pairs = [(self._vector(output), cell.vector) for _, cell, _, output in copies]
        after, before = (_unit(_array(vectors)) for vectors in zip(*pairs, strict=True))
        if self._targets is None:
            return 1 - (after * before).sum(axis=1, keepdims=True)
        return (after - before) @ self._targets.T

    def _means(self, tag: int, cell: _Cell, genes: NDArray[np.int64], output: Tensor) -> tuple[Tensor, Tensor]:
        """Means of a copy and of its cell."""
        states = self._genes_of(output)
        total = states.float().sum(dim=0)
        if self._upstream:
            return total / len(genes), cell.vector / len(cell.genes)
        changed = self._perturbations.tokens(tag)
        own = np.flatnonzero(np.isin(genes, changed))
        n = len(genes) - len(own)
        others = np.flatnonzero(~np.isin(cell.genes, changed))[:n]  # what a copy is cut by came last
        lost = np.delete(np.arange(len(cell.genes)), others)
        return (total - _sum_of(states, own)) / n, (cell.vector - _sum_of(cell.states, lost)) / n

    def _cosines(self, tag: int, cell: _Cell, genes: NDArray[np.int64], output: Tensor) -> NDArray[np.float64]:
        """Cosines of the states of the genes that cell and copy have in common and that were not changed."""
        import torch

        changed = self._perturbations.tokens(tag)
        own, others = np.flatnonzero(~np.isin(genes, changed)), np.flatnonzero(~np.isin(cell.genes, changed))
        place = np.argsort(cell.genes[others], kind="stable")
        at = others[place[np.searchsorted(cell.genes[others], genes[own], sorter=place)]]
        assert cell.states is not None
        pair = (self._genes_of(output)[_index(own, output)], cell.states[_index(at, cell.states)].to(output.device))
        cosines = _array([torch.cosine_similarity(pair[0].float(), pair[1].float())])[0]
        if self._gene_effects is not None:
            self._gene_effects(tag, genes[own], 1 - cosines)
        return cosines

    def _n_cut(self, genes: NDArray[np.int32], tag: int) -> int:
        """Genes by which upstream shortens a cell whose copy is too long."""
        if not self._upstream or self._perturbations.kind != "overexpress":
            return 0
        absent = len(set(self._perturbations.tokens(tag)) - set(genes.tolist()))
        needed = len(genes) + absent
        if not self._mean_of_cosines:  # else its count, which takes absent genes twice, ends in an error
            needed = min(needed, self._max_genes) + absent
        return max(0, needed - self._max_genes)


class _Sequences:
    """Collects sequences into blocks."""

    def __init__(self, row0: int, frame: list[NDArray[np.int32]]) -> None:
        self._row0, self._frame = row0, frame
        self._clear()

    def _clear(self) -> None:
        self._parts: list[NDArray[np.int32]] = []
        self._rows: list[int] = []
        self._tags: list[int] = []
        self._lengths = [0]
        self.n_tokens = 0

    def add(self, row: int, tag: int, genes: NDArray[np.int32]) -> None:
        """Add the genes of a sequence."""
        before, after = self._frame
        self._parts += (before, genes, after)
        self._rows.append(row)
        self._tags.append(tag)
        self._lengths.append(len(before) + len(genes) + len(after))
        self.n_tokens += self._lengths[-1]

    def block(self) -> TokenBlock:
        """What was added since the last one."""
        block = TokenBlock(
            self._row0,
            np.concatenate(self._parts or [np.empty(0, np.int32)]),
            np.cumsum(self._lengths),
            np.empty(0, np.int64),
            rows=np.asarray(self._rows, np.int64),
            tags=np.asarray(self._tags, np.int64),
        )
        self._clear()
        return block


class Effects:
    """Collects effects, with the cell and the tag of each copy.

    Parameters
    ----------
    n_effects
        Effects of a copy.
    n_features
        Features of the embeddings that are kept beside them; 0 for none.
    """

    def __init__(self, n_effects: int, n_features: int = 0) -> None:
        self.n_effects, self.n_features = n_effects, n_features
        self.clear()

    def clear(self) -> None:
        """Forget what was collected."""
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        """Keep the effects of the copies of a batch; with embeddings, also the cells as they are."""
        assert batch.tags is not None
        kept = batch.tags >= (WHOLE if self.n_features else 0)
        if kept.any():
            self._parts.append((batch.rows[kept], batch.tags[kept], output.numpy()[kept].astype(np.float32)))

    def end_block(self, stop: int, stats: RunStats) -> None:
        """Nothing is held back."""

    def table(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Cells, tags and effects of all copies, shape ``(n_copies, n_effects)``, sorted by cell and tag."""
        rows, tags, values = self._all()
        copies = tags >= 0
        return rows[copies], tags[copies], values[copies, : self.n_effects]

    def embeddings(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Cells, tags (−1 for cells as they are) and embeddings, shape ``(n_sequences, n_features)``, in the same order."""
        rows, tags, values = self._all()
        return rows, tags, values[:, self.n_effects :]

    def _all(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        width = self.n_effects + self.n_features
        nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, width), np.float32))
        rows, tags, values = map(np.concatenate, zip(*(self._parts or [nothing]), strict=True))
        order = np.lexsort((tags, rows))
        return rows[order], tags[order], values[order]


def _array(vectors: Any) -> NDArray[np.float64]:
    """Tensors of one shape as an array."""
    import torch

    return torch.stack(list(vectors)).float().cpu().numpy().astype(np.float64)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # NaN where there is no gene to take a mean of
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _index(positions: NDArray[np.int64], like: Tensor) -> Tensor:
    import torch

    return torch.from_numpy(positions).to(like.device)


def _sum_of(states: Tensor | None, positions: NDArray[np.int64]) -> Tensor:
    assert states is not None
    return states[_index(positions, states)].float().sum(dim=0)
