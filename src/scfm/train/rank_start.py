"""Weights of a BERT with which the embedding of a cell is a linear projection of its ranked genes, to train from.

A token at position p of n counts with the weight ``w(p) = 1 − log(1 + p) / log(4 n)``. With vectors ``v`` of genes the
embedding is, up to a small term, ``s · (Σ w(p) v(gene at p) / number of genes − m)``:

* The word embedding of a gene is ``v``, with the mean of its features removed and of length 1 or less for nine of ten
  genes; the first feature is 0, and the last one is that of ``<mask>`` alone. The position embedding is ``3 / w(p)`` in the first feature alone. It outweighs ``v``, so
  that the norm behind divides ``v`` by it.
* What a layer adds to the features by which cells are compared is 0 at first; the other weights are drawn at random.
* The last norm scales by ``s`` and shifts by ``−s m``; the mean over the corpus, all files alike, becomes 0. The first
  feature becomes a constant: without it, cells of a kind that is far from that mean would all point in one direction.

``v`` are singular vectors of the matrix of weights of many cells, files alike, each gene divided by its standard deviation
+ 0.1. Among the first half of the directions, differences between two halves of the counts of a cell are made alike in all
directions (whitened, as in linear discriminant analysis, where a cell is a class), so that directions count as much as they
say about cells. The others are for the layers to use, and have a small part in the embedding.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import nn

from scfm.nn import BertEncoder, MaskedLMHead
from scfm.nn.heads import head_targets
from scfm.train.objectives.masked_genes import BIAS, bert_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scfm.model import FoundationModel
    from scfm.model.recipe import RunOptions
    from scfm.train.steps import Steps

__all__ = ["projecting_tensors"]

CELLS = 20_000
"""Cells of which singular vectors are found."""
HALVED = 8_000
"""Cells of which two halves are compared."""
AFFINE = 600
"""Cells by which the last norm is set."""
STRENGTH = 3.0
"""First feature of the first position, of which a gene has at most a length of 1."""
OTHERS = 0.1
"""Standard deviation of the other features of an embedding, where that of the compared ones is 1."""
CONSTANT = 3.0
"""First feature of all embeddings, in the same unit."""
SHRINKAGE = 0.15
"""Share of the mean variance that is added to the variances of all directions before these are made alike."""
HALVES = 6
"""Number that tells this random stream of a seed apart."""


def projecting_tensors(model: FoundationModel, steps: Steps, options: RunOptions, seed: int) -> dict[str, torch.Tensor]:
    """Make weights, with those of a head for masked genes, whose bias is the log-frequency of a gene.

    Parameters
    ----------
    model
        Sizes and vocabulary.
    steps
        Cells are drawn from its first steps.
    options
        How cells are pooled.
    seed
        Where the other weights are drawn from.

    Returns
    -------
    Tensors by published name.

    Raises
    ------
    TypeError
        If the network is no BERT.
    """
    torch.manual_seed(seed)
    network = bert_of(model.training_network(), "start: projection")
    whole = replace(steps, views=None, masking=None, n_views=1)
    size, d, n_positions = model.vocabulary.size, network.config.hidden_size, network.config.max_positions
    weights = 1 - np.log1p(np.arange(n_positions)) / math.log(4 * n_positions)
    cells, files = _ranked(whole, CELLS, size, weights)
    vectors, n_compared = _vectors(cells, files, whole, weights, d - 2)
    words = np.zeros((size, d))
    words[:, 1:-1] = vectors - vectors.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(words, axis=1)
    words /= np.quantile(lengths[lengths > 0], 0.9)
    mask = model.vocabulary.special_tokens.get("<mask>")
    if mask is not None:  # a length, by which the position of a masked gene is seen
        words[mask, -1] = 1
    _set(network, words, STRENGTH / weights, n_compared)
    _centre(network, model, whole, options, n_compared)
    head = MaskedLMHead(network.config)
    nn.init.normal_(head.dense.weight, std=d**-0.5)
    with torch.no_grad():
        shown = np.asarray((cells != 0).mean(axis=0)).ravel()
        head.bias.copy_(torch.from_numpy(np.log(shown + 1e-5)))
    tensors = {**model.published_tensors(network), **head_targets(head), BIAS: head.bias}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _sequences(steps: Steps, n: int) -> Iterator[Any]:
    """Batches of the first steps, with ``n`` cells or a few more; no more than there are."""
    for step in range(_n_steps(steps, n)):
        yield from steps.batches(step)


def _n_steps(steps: Steps, n: int) -> int:
    return -(-min(n, sum(steps.corpus.sizes)) // steps.batch_cells)


def _matrix(
    tokens: NDArray[np.integer], lengths: NDArray[np.integer], size: int, weights: NDArray[np.float64]
) -> sparse.csr_matrix:
    """Weight of each token in each sequence, divided by the length, shape ``(n_sequences, size)``."""
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    position = np.arange(indptr[-1]) - np.repeat(indptr[:-1], lengths)
    values = weights[position] / np.repeat(lengths, lengths)
    return sparse.csr_matrix((values, tokens, indptr), shape=(len(lengths), size))


def _halves(steps: Steps, size: int, weights: NDArray[np.float64]) -> Iterator[list[sparse.csr_matrix]]:
    """Cells of the first steps by two halves of their counts, which are drawn molecule by molecule."""
    rng = np.random.default_rng((steps.seed, HALVES))
    for step in range(_n_steps(steps, HALVED)):
        block, _ = steps.draws.cells(*steps.draws(step * steps.batch_cells, (step + 1) * steps.batch_cells))
        counts = np.rint(block.data).astype(np.int64)
        first = rng.binomial(counts, 0.5)
        parts = [steps.encode(replace(block, data=half.astype(np.float64))) for half in (first, counts - first)]
        lengths = [np.diff(part.offsets) for part in parts]
        both = np.logical_and(*(n > 0 for n in lengths))
        yield [_matrix(part.tokens, n, size, weights)[both] for part, n in zip(parts, lengths, strict=True)]


def _ranked(
    steps: Steps, n: int, size: int, weights: NDArray[np.float64]
) -> tuple[sparse.csr_matrix, NDArray[np.int64]]:
    found = [
        (_matrix(one.batch.tokens, np.asarray(one.batch.lengths), size, weights), one.sources)
        for one in _sequences(steps, n)
    ]
    return sparse.vstack([cells for cells, _ in found]).tocsr(), np.concatenate([files for _, files in found])


def _vectors(
    cells: sparse.csr_matrix, files: NDArray[np.int64], steps: Steps, weights: NDArray[np.float64], n_features: int
) -> tuple[NDArray[np.float64], int]:
    """Vector of each token, and the number of features by which cells are compared."""
    from sklearn.utils.extmath import randomized_svd

    lengths = np.diff(cells.indptr)[:, None]
    counted = sparse.csr_matrix(cells.multiply(lengths))
    mean = np.asarray(counted.mean(axis=0)).ravel()
    square = np.asarray(counted.multiply(counted).mean(axis=0)).ravel()
    scale = 1 / (np.sqrt(np.maximum(square - mean**2, 0)) + 0.1)
    alike = np.bincount(files)[files] ** -0.5
    directions = randomized_svd(
        sparse.diags(alike / alike.max()) @ counted @ sparse.diags(scale), n_features, n_iter=4, random_state=0
    )[2].T
    vectors = scale[:, None] * directions
    projected = cells @ vectors
    inside = np.mean([np.cov(projected[files == file].T) for file in np.unique(files)], axis=0)
    vectors = vectors / np.sqrt(np.diag(inside))
    n = (n_features + 1) // 2
    change, n_halved = np.zeros((n, n)), 0
    for first, second in _halves(steps, len(vectors), weights):
        difference = (first - second) @ vectors[:, :n]
        change += difference.T @ difference
        n_halved += len(difference)
    values, axes = np.linalg.eigh(change / n_halved)
    whitening = (axes / np.sqrt(values + SHRINKAGE * values.mean())) @ axes.T
    within = inside[:n, :n] / np.sqrt(np.outer(np.diag(inside)[:n], np.diag(inside)[:n]))
    whitening /= np.sqrt(np.trace(whitening @ within @ whitening) / n)
    vectors[:, :n] = vectors[:, :n] @ whitening
    return vectors, n


def _set(network: BertEncoder, words: NDArray[np.float64], positions: NDArray[np.float64], n_compared: int) -> None:
    d = words.shape[1]
    with torch.no_grad():
        network.word_embeddings.weight.copy_(torch.from_numpy(words))
        network.position_embeddings.weight.zero_()
        network.position_embeddings.weight[:, 0] = torch.from_numpy(positions)
        network.token_type_embeddings.weight.zero_()
        for layer in cast("Any", network.layers):
            for part in (layer.qkv, layer.up):
                nn.init.normal_(part.weight, std=0.5 * d**-0.5)
                part.weight[:, 1:] *= STRENGTH / 2
            for part in (layer.out, layer.down):
                nn.init.normal_(part.weight, std=d**-0.5)
                part.weight[: n_compared + 1] = 0


def _centre(network: BertEncoder, model: FoundationModel, steps: Steps, options: RunOptions, n: int) -> None:
    """Let the last norm give features mean 0, and those that cells are compared by a standard deviation of 1."""
    with torch.no_grad():
        found = [
            (model.training_outputs(network, one.batch, options)[1], one.sources) for one in _sequences(steps, AFFINE)
        ]
        pooled, files = torch.cat([cells for cells, _ in found]), np.concatenate([files for _, files in found])
        by_file = [pooled[torch.from_numpy(files == file)] for file in np.unique(files)]
        mean = torch.stack([cells.mean(dim=0) for cells in by_file]).mean(dim=0)
        spread = torch.stack([cells.var(dim=0, correction=0) for cells in by_file]).mean(dim=0).sqrt()
        norm = cast("Any", network.layers)[-1].norm2
        norm.weight.copy_(OTHERS / spread.clamp(min=1e-6))
        norm.weight[1 : n + 1] = 1 / spread[1 : n + 1].square().mean().sqrt()
        norm.weight[[0, -1]] = 0
        norm.bias.copy_(-mean * norm.weight)
        norm.bias[0] = CONSTANT
