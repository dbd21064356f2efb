"""How probable the genes of a cell are by what the model sees of the others."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from scfm.run.sinks import GeneStatesSink
from scfm.tasks.score_rows import ScoreRows
from scfm.tasks.task import Resumable, SupportsForward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch
    from numpy.typing import NDArray
    from scipy import sparse
    from torch import Tensor

    from scfm._types import TokenBatch, TokenBlock
    from scfm.run import RunStats
    from scfm.run.engine import Forward

    Mask: TypeAlias = Literal["each", "given"] | float
    Predictor: TypeAlias = Callable[[torch.nn.Module, Tensor], Tensor]

__all__ = ["PredictGenes", "SupportsPrediction"]

COPY_TOKENS = 2**18
"""Tokens of masked copies that are made together."""
BLOCK_ROWS, FEW_ROWS = 512, 64
"""Cells of a block, between which results can be put aside; fewer where genes are masked one by one."""
ROWS = 512
"""Predictions whose probabilities of all genes exist at once: 50 MB for 25,000 genes."""


class SupportsPrediction(SupportsForward, Protocol):
    """Recipe of a model that predicts genes."""

    def predictor(self, options: Any, device: torch.device, dtype: torch.dtype) -> Predictor:
        """Return the step from hidden states to log-probabilities of all tokens."""


class PredictGenes(Resumable):
    """Probability of genes of each cell, at their masked positions or from the genes before them.

    Parameters
    ----------
    recipe, options
        The model, and the options of the run, with ``pooling="gene"``.
    column_tokens
        Token of each column of :meth:`probabilities`, −1 for genes that are not predicted.
    mask_token
        Token that takes the place of a gene; ``None`` for a causal model, which predicts each gene from those before it.
    mask
        ``"each"``: a copy of the cell for each gene, in which it is masked; ``"given"``: one copy in which all are masked; a
        number: one copy in which this share of them is masked, drawn by ``seed`` and the tokens of the cell.
    seed
        Seed of that draw.
    vocab_size
        Number of tokens, for the mean probabilities of what is predicted in the place of each gene; 0: they are not kept.
    """

    done = "predicted genes of"
    empty_rows = "without predictions"

    def __init__(
        self,
        recipe: SupportsPrediction,
        options: Any,
        column_tokens: NDArray[np.int32],
        mask_token: int | None,
        mask: Mask,
        seed: int,
        vocab_size: int,
    ) -> None:
        self.rows: ScoreRows = ScoreRows(len(column_tokens))
        super().__init__(_Sink(GeneStatesSink(column_tokens, self.rows)))
        self._recipe = recipe
        self._options = replace(options, compat=None)  # so that states are those of their own tokens
        self.block_rows = FEW_ROWS if mask == "each" and mask_token is not None else BLOCK_ROWS
        self._mask_token, self._mask, self._seed = mask_token, mask, seed
        self.queries = np.unique(column_tokens[column_tokens >= 0])
        """Tokens of the genes that are predicted, sorted."""
        self._vocab_size = vocab_size
        self._block: TokenBlock | None = None
        self._sums: list[tuple[Tensor, Tensor]] = []
        self._before: Mapping[str, NDArray[Any]] | None = None

    def edit(self, block: TokenBlock) -> Iterator[TokenBlock]:
        """Masked copies of the cells; for a causal model the cells as they are."""
        self._block = block
        if self._mask_token is None:
            yield block
            return
        rows, copies, n_tokens = [], [], 0
        for i, tokens in enumerate(np.split(block.tokens, block.offsets[1:-1])):
            for places in self._masked(tokens):
                copy = tokens.copy()
                copy[places] = self._mask_token
                rows.append(block.row0 + i)
                copies.append(copy)
                n_tokens += len(copy)
                if n_tokens >= COPY_TOKENS:
                    yield _block_of(block.row0, rows, copies)
                    rows, copies, n_tokens = [], [], 0
        yield _block_of(block.row0, rows, copies)

    def make_forward(self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Forward:
        """Token and probability of each gene that is predicted, float32, shape ``(n_tokens, 2)``; −1 and 0 elsewhere."""
        import torch

        predictor = self._recipe.predictor(self._options, device, dtype)
        kept = self._vocab_size and len(self.queries)
        wide = torch.float32 if device.type == "mps" else torch.float64
        sums = torch.zeros(kept, self._vocab_size if kept else 0, dtype=wide, device=device)
        counts = torch.zeros(len(self.queries), dtype=torch.int64)
        if self._before is not None:
            sums.copy_(torch.from_numpy(self._before["sums"]))
            counts.copy_(torch.from_numpy(self._before["counts"]))
            self._before = None  # the first device goes on with them
        self._sums.append((sums, counts))
        return lambda batch: self._predicted(network, predictor, batch, sums, counts)

    def probabilities(self, n_obs: int) -> sparse.csr_matrix:
        """Probabilities of genes in cells, float32, shape ``(n_obs, n_columns)``; what was predicted is stored."""
        return self.rows.matrix(n_obs)

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Mean probability of each token in the place of each query, and the number of cells; shapes ``(n, vocab_size)``, ``(n,)``."""
        sums, counts = self.sums().values()
        return sums / np.maximum(counts, 1)[:, None], counts

    def expressed(self) -> NDArray[np.int32]:
        """Tokens of the genes that were predicted in any cell."""
        return self.queries[self.sums()["counts"] > 0]

    def sums(self) -> dict[str, NDArray[Any]]:
        """Sums of probabilities, where they are kept, and numbers of cells."""
        parts = [(sums.cpu().double().numpy(), counts.numpy()) for sums, counts in self._sums]
        sums, counts = parts[0]
        for more in parts[1:]:
            sums, counts = sums + more[0], counts + more[1]
        return {"sums": sums, "counts": counts}

    def restore(self, sums: Mapping[str, NDArray[Any]]) -> None:
        """Go on from them."""
        self._before = sums

    def _masked(self, tokens: NDArray[np.int32]) -> list[NDArray[np.int64]]:
        """Positions that are masked in each copy of a cell."""
        places = np.flatnonzero(np.isin(tokens, self.queries))
        if self._mask == "each":
            return np.split(places, np.arange(1, len(places))) if len(places) else []
        if not isinstance(self._mask, str):
            rng = np.random.default_rng((self._seed, zlib.crc32(tokens.tobytes())))
            places = places[rng.random(len(places)) < self._mask]
        return [places] if len(places) else []

    def _predicted(
        self, network: torch.nn.Module, predictor: Predictor, batch: TokenBatch, sums: Tensor, counts: Tensor
    ) -> Tensor:
        import torch

        found = torch.tensor([-1.0, 0.0]).repeat(len(batch.tokens), 1)
        at, genes = self._targets(batch)
        states = self._recipe.forward(network, batch, self._options)
        states = states[torch.from_numpy(at if self._mask_token is not None else at - 1).to(states.device)]
        found[torch.from_numpy(at), 0] = torch.from_numpy(genes.astype(np.float32))
        query = torch.from_numpy(np.searchsorted(self.queries, genes))
        for start in range(0, len(at), ROWS):
            part = slice(start, start + ROWS)
            probabilities = predictor(network, states[part]).exp()
            chosen = torch.from_numpy(genes[part].astype(np.int64)).to(probabilities.device)
            found[torch.from_numpy(at[part]), 1] = probabilities.gather(1, chosen[:, None])[:, 0].cpu()
            if len(sums):
                sums.index_add_(0, query[part].to(sums.device), probabilities.to(sums.dtype))
        counts += torch.bincount(query, minlength=len(self.queries))
        return found

    def _targets(self, batch: TokenBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions in the batch that are predicted, and the genes that are there."""
        if self._mask_token is None:
            at = np.flatnonzero(np.isin(batch.tokens, self.queries))
            return at, batch.tokens[at]
        assert self._block is not None
        at = np.flatnonzero(batch.tokens == self._mask_token)
        firsts = batch.firsts
        sequence = np.searchsorted(firsts, at, side="right") - 1
        cells = self._block.offsets[batch.rows[sequence] - self._block.row0]
        return at, self._block.tokens[cells + at - firsts[sequence]].astype(np.int64)


class _Sink:
    """Passes on the probabilities of genes under the tokens of these, not of the mask in their place."""

    def __init__(self, genes: GeneStatesSink) -> None:
        self._genes = genes

    def write(self, batch: TokenBatch, output: Tensor) -> None:
        self._genes.write(replace(batch, tokens=output[:, 0].long().cpu().numpy()), output[:, 1:])

    def end_block(self, stop: int, stats: RunStats) -> None:
        self._genes.end_block(stop, stats)


def _block_of(row0: int, rows: list[int], copies: list[NDArray[np.int32]]) -> TokenBlock:
    from scfm._types import TokenBlock

    offsets = np.concatenate([[0], np.cumsum([len(copy) for copy in copies], dtype=np.int64)])
    tokens = np.concatenate([np.empty(0, np.int32), *copies])
    return TokenBlock(row0, tokens, offsets.astype(np.int64), np.empty(0, np.int64), rows=np.asarray(rows, np.int64))
