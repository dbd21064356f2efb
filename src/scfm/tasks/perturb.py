"""What a change of its genes does to the embedding or the likelihood of a cell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from scfm._types import TokenBlock
from scfm.tasks.effects import WHOLE, Effects
from scfm.tasks.perturbations import Genes
from scfm.tasks.task import SupportsForward, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from scfm._types import TokenBatch
    from scfm.genes import Vocabulary
    from scfm.tasks.perturbations import Kind, Perturbations, Perturber

__all__ = ["Effect", "Perturb", "SupportsPerturbing"]

Effect = Literal["embedding", "likelihood"]
"""What is compared between a cell and its changed copy."""

COPY_TOKENS = 2**20
"""Tokens of the changed copies that are made at a time."""
STATE_BYTES = 2**28
"""Of the states of unchanged cells that are kept while their copies are computed."""


class SupportsPerturbing(SupportsForward, Protocol):
    """What this task asks of the recipe of a model."""

    vocabulary: Vocabulary
    """Tells genes from special tokens."""
    context_poolings: ClassVar[tuple[str, ...]]
    """Poolings that add up the states of genes."""

    @property
    def n_features(self) -> int:
        """Width of an embedding."""

    def perturber(self, kind: Kind, options: Any) -> Perturber:
        """Make the step that changes genes of a cell."""

    def scorer(self, options: Any, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
        """Make the step that computes log-likelihoods; asked for by ``effect="likelihood"`` alone."""

    def max_genes(self, options: Any) -> int:
        """Genes of a cell that the model takes."""


@dataclass(frozen=True)
class _Read:
    """What the network makes of a cell, or of a changed copy."""

    genes: NDArray[np.int64]
    """Tokens of its genes."""
    vector: Tensor
    """Sum of what the network gives for its genes, where that is compared, else its embedding; shape ``(n_features,)``."""
    states: Tensor | None = None
    """What the network gives for its genes, shape ``(n_genes, n_features)``, where that is read."""


class Perturb(Task):
    """How far changes of its genes move the embedding of a cell, and where to; or what they do to its likelihood.

    The effect of a change is ``1 − cos(e′, e)``, with ``e`` the embedding of the cell and ``e′`` that of the changed
    copy; with target states ``S``, it is ``cos(e′, S) − cos(e, S)`` for each of them. Under a pooling over genes, as
    ``"mean"``, ``e`` and ``e′`` are sums over the genes that cell and copy have in common and that were not changed: what
    counts is that the context changes, not that a gene is missing from a mean. For ``effect="likelihood"`` it is the sum
    over the same genes of their log-likelihoods (of gene and count) in the copy, minus that in the cell.

    Under ``compat="upstream"``, as Geneformer's ``InSilicoPerturber`` has it (of models with its poolings): means are over
    whole sequences; without targets, the effect under ``"mean"`` is one minus the mean cosine of the states of the genes that
    are left; and a cell is shortened where its copy is too long.

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
    moves
        With targets, called with the tags of some copies and the differences of the unit vectors of copy and cell, shape
        ``(n_copies, n_features)``.
    effect
        What is compared.
    embeddings
        Keep the embeddings of cells and copies.

    Raises
    ------
    ValueError
        If the options do not go with the kind of the perturbations.
    """

    empty_rows = "without effects"

    def __init__(
        self,
        recipe: SupportsPerturbing,
        options: Any,
        perturbations: Perturbations,
        targets: NDArray[Any] | None = None,
        gene_effects: Callable[[int, NDArray[np.int64], NDArray[np.float64]], None] | None = None,
        moves: Callable[[list[int], NDArray[np.float64]], None] | None = None,
        *,
        effect: Effect = "embedding",
        embeddings: bool = False,
    ) -> None:
        self.effects = Effects(1 if targets is None else len(targets), recipe.n_features if embeddings else 0)
        super().__init__(self.effects)
        self._recipe, self._options, self._perturbations = recipe, options, perturbations
        self._edit = recipe.perturber(perturbations.kind, options)
        self._targets = None if targets is None else _unit(np.asarray(targets, np.float64))
        self._likelihood = effect == "likelihood"
        # what upstream does it does with these poolings
        self._upstream = options.compat == "upstream" and not self._likelihood and "mean" in recipe.context_poolings
        self._over_genes = self._likelihood or options.pooling in recipe.context_poolings
        self._mean_of_cosines = self._upstream and options.pooling == "mean" and targets is None
        self._gene_effects, self._moves = gene_effects, moves
        self._reads_genes = self._over_genes or gene_effects is not None
        self.counted: set[int] = set()
        """Tags of all copies that :meth:`count` has counted."""
        self._cells: dict[tuple[int, int], _Read] = {}
        self._specials = np.asarray([*recipe.vocabulary.special_tokens.values()], np.int32)
        self._max_genes = recipe.max_genes(options)
        if self._reads_genes and not self._likelihood:
            self.block_rows = max(1, STATE_BYTES // (4 * self._max_genes * recipe.n_features))

    def edit(self, block: TokenBlock) -> Iterator[TokenBlock]:
        """The cells as they are, then their changed copies."""
        self._cells.clear()
        rows = block.row0 + np.arange(block.n_cells)
        yield replace(block, rows=rows, tags=np.full(block.n_cells, WHOLE))
        shortened, copies = _Sequences(block.row0), _Sequences(block.row0)
        for row, cell in zip(rows.tolist(), _sequences(block, block.offsets), strict=True):
            span = self._span(cell.tokens)
            genes, frame = cell.part(span), (cell.part(slice(span.start)), cell.part(slice(span.stop, None)))
            for tag, after in self._perturbations.of(genes, self._edit):
                cut = self._n_cut(genes, tag)
                if cut:
                    shortened.add(row, WHOLE - 1 - tag, frame, genes.part(slice(-cut)))
                copies.add(row, tag, frame, after)
                if copies.n_tokens >= COPY_TOKENS:
                    yield from (shortened.block(), copies.block())
        yield from (shortened.block(), copies.block())

    def count(self, block: TokenBlock) -> NDArray[np.int64]:
        """Number of the changed copies of each cell of a block, and of their tokens (as if none were lost or added)."""
        counts = []
        for cell in _sequences(block, block.offsets):
            tags = self._perturbations.tags(cell.part(self._span(cell.tokens)))
            self.counted.update(tags)
            counts.append((len(tags), len(tags) * len(cell.tokens)))
        return np.asarray(counts, np.int64).reshape(-1, 2)

    def make_forward(
        self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype
    ) -> Callable[[TokenBatch], Tensor]:
        """Effects of the sequences of a batch, float64, 0 for cells as they are; beside them their embeddings, if kept."""
        outputs = self._outputs(network, device, dtype)

        def compute(batch: TokenBatch) -> Tensor:
            import torch

            assert batch.tags is not None
            output = outputs(batch)
            parts = output.split(batch.lengths.tolist()) if self._reads_genes else output
            sequences = _sequences(batch, np.cumsum([0, *batch.lengths]))
            reads = [self._read(cell.tokens, part) for cell, part in zip(sequences, parts, strict=True)]
            keys = list(zip(batch.rows.tolist(), batch.tags.tolist(), strict=True))
            if keys[0][1] < 0:  # cells as they are come in blocks of their own
                self._cells |= dict(zip(keys, reads, strict=True))
                effects = np.zeros((len(keys), self.effects.n_effects))
            else:
                effects = self._effects_of(keys, reads)
            if self.effects.n_features:
                effects = np.hstack([effects, self._embeddings(network, batch, reads)])
            return torch.from_numpy(effects)

        return compute

    def _outputs(
        self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype
    ) -> Callable[[TokenBatch], Tensor]:
        """What is read of a batch: a row for each token or, where genes are not read, for each sequence."""
        if self._likelihood:
            score = self._recipe.scorer(self._options, device, dtype)
            # in float64: a change is small beside the sum over a thousand genes
            return lambda batch: score(network, batch)[:, :2].cpu().double().sum(dim=1, keepdim=True)
        # of the states of genes, upstream may take others than those that it pools
        options = replace(self._options, pooling="gene", compat=None) if self._reads_genes else self._options
        return lambda batch: self._recipe.forward(network, batch, options)

    def _span(self, tokens: NDArray[Any]) -> slice:
        """Where the genes of a sequence are: between the special tokens and assays around them."""
        is_gene = ~np.isin(tokens, self._specials) & (tokens < self._recipe.vocabulary.size)
        at = np.flatnonzero(is_gene)
        return slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 0)

    def _read(self, tokens: NDArray[Any], output: Tensor) -> _Read:
        span = self._span(tokens)
        if not self._reads_genes:
            return _Read(tokens[span], output)
        states = output[span]
        return _Read(tokens[span], _sum_of(states) if self._over_genes else output[0], states)

    def _embeddings(self, network: torch.nn.Module, batch: TokenBatch, reads: Sequence[_Read]) -> NDArray[np.float64]:
        if not self._over_genes:
            return _array([one.vector for one in reads])
        if self._options.pooling == "mean":
            return _array([one.vector / len(one.genes) for one in reads])
        return _array(self._recipe.forward(network, batch, self._options))

    def _effects_of(self, keys: list[tuple[int, int]], reads: Sequence[_Read]) -> NDArray[np.float64]:
        cells = [self._cells.get((row, WHOLE - 1 - tag), self._cells[row, WHOLE]) for row, tag in keys]
        copies = list(zip((tag for _, tag in keys), cells, reads, strict=True))
        if self._gene_effects is not None or self._mean_of_cosines:
            cosines = [self._cosines(*copy) for copy in copies]
            if self._mean_of_cosines:
                return np.asarray([[1 - one.mean()] for one in cosines])
        pairs = [self._vectors(*copy) for copy in copies]
        after, before = (_array(vectors) for vectors in zip(*pairs, strict=True))
        if self._likelihood:
            return after - before
        after, before = _unit(after), _unit(before)
        if self._targets is None:
            return 1 - (after * before).sum(axis=1, keepdims=True)
        if self._moves is not None:
            self._moves([tag for _, tag in keys], after - before)
        return (after - before) @ self._targets.T

    def _vectors(self, tag: int, cell: _Read, copy: _Read) -> tuple[Tensor, Tensor]:
        """What is compared of a copy and of its cell; sums have the direction of means."""
        if self._upstream or not self._over_genes:
            return copy.vector, cell.vector
        changed = self._perturbations.tokens(tag)
        own = np.flatnonzero(np.isin(copy.genes, changed))
        n = len(copy.genes) - len(own)
        others = np.flatnonzero(~np.isin(cell.genes, changed))[:n]  # what a copy is cut by came last
        lost = np.delete(np.arange(len(cell.genes)), others)
        return copy.vector - _sum_of(copy.states, own), cell.vector - _sum_of(cell.states, lost)

    def _cosines(self, tag: int, cell: _Read, copy: _Read) -> NDArray[np.float64]:
        """Cosines of the states of the genes that cell and copy have in common and that were not changed."""
        import torch

        changed = self._perturbations.tokens(tag)
        own, others = np.flatnonzero(~np.isin(copy.genes, changed)), np.flatnonzero(~np.isin(cell.genes, changed))
        place = np.argsort(cell.genes[others], kind="stable")
        at = others[place[np.searchsorted(cell.genes[others], copy.genes[own], sorter=place)]]
        assert copy.states is not None
        assert cell.states is not None
        pair = (copy.states[_index(own, copy.states)], cell.states[_index(at, cell.states)].to(copy.states.device))
        cosines = _array([torch.cosine_similarity(pair[0].float(), pair[1].float())])[0]
        if self._gene_effects is not None:
            self._gene_effects(tag, copy.genes[own], 1 - cosines)
        return cosines

    def _n_cut(self, genes: Genes, tag: int) -> int:
        """Genes by which upstream shortens a cell whose copy is too long."""
        if not self._upstream or self._perturbations.kind != "overexpress":
            return 0
        absent = len(set(self._perturbations.tokens(tag)) - genes.place_of.keys())
        needed = len(genes.tokens) + absent
        if not self._mean_of_cosines:  # else its count, which takes absent genes twice, ends in an error
            needed = min(needed, self._max_genes) + absent
        return max(0, needed - self._max_genes)


def _sequences(many: TokenBlock | TokenBatch, offsets: NDArray[np.int64]) -> Iterator[Genes]:
    """The sequences of a block or batch, special tokens included."""
    tokens: NDArray[Any] = many.tokens
    whole = Genes(tokens, many.values)
    return (whole.part(slice(*ends)) for ends in pairwise(offsets.tolist()))


class _Sequences:
    """Collects sequences into blocks."""

    def __init__(self, row0: int) -> None:
        self._row0 = row0
        self._clear()

    def _clear(self) -> None:
        self._parts: list[Genes] = []
        self._rows: list[int] = []
        self._tags: list[int] = []
        self._lengths = [0]
        self.n_tokens = 0

    def add(self, row: int, tag: int, frame: tuple[Genes, Genes], genes: Genes) -> None:
        """Add a sequence: its genes, and what comes before and after them."""
        parts = (frame[0], genes, frame[1])
        self._parts += parts
        self._rows.append(row)
        self._tags.append(tag)
        self._lengths.append(sum(len(part.tokens) for part in parts))
        self.n_tokens += self._lengths[-1]

    def block(self) -> TokenBlock:
        """What was added since the last one."""
        values = [part.values for part in self._parts if part.values is not None]
        block = TokenBlock(
            self._row0,
            np.concatenate([np.empty(0, np.int32), *(part.tokens for part in self._parts)]),
            np.cumsum(self._lengths),
            np.empty(0, np.int64),
            np.concatenate(values) if values else None,
            rows=np.asarray(self._rows, np.int64),
            tags=np.asarray(self._tags, np.int64),
        )
        self._clear()
        return block


def _array(vectors: Any) -> NDArray[np.float64]:
    """Tensors of one shape as an array."""
    import torch

    return torch.stack(list(vectors)).cpu().double().numpy()


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # NaN where there is no gene to take a mean of
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _index(positions: NDArray[np.int64], like: Tensor) -> Tensor:
    import torch

    return torch.from_numpy(positions).to(like.device)


def _sum_of(states: Tensor | None, positions: NDArray[np.int64] | None = None) -> Tensor:
    """Sum of states, or of some of them, in float32 at least."""
    import torch

    assert states is not None
    chosen = states if positions is None else states[_index(positions, states)]
    return chosen.sum(dim=0, dtype=torch.promote_types(chosen.dtype, torch.float32))
