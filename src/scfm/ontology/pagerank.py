"""Personalised PageRank from many nodes at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["personalised_pagerank"]


def personalised_pagerank(
    adjacency: sparse.csr_array, seeds: NDArray[np.intp], *, alpha: float, tol: float, max_iter: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Iterate PageRank for each seed, as ``networkx.pagerank`` does for one.

    With the transition matrix :math:`P` of the random walk and the indicator :math:`s` of the seed,
    :math:`x ← α (P^T x + m s) + (1 - α) s`, where :math:`m` is the mass on nodes without a neighbour. Every seed
    starts from the uniform vector and stops when its own L1 change is below ``N · tol``.

    Parameters
    ----------
    adjacency
        Symmetric 0/1 matrix of the undirected graph, shape ``(N, N)``.
    seeds
        Nodes to start from, one run each, shape ``(n_seeds,)``.
    alpha
        Probability to continue the walk rather than return to the seed.
    tol
        L1 change per node below which a seed has converged.
    max_iter
        Maximum number of iterations.

    Returns
    -------
    ranks
        Row i: PageRank of all nodes from seed i, float64, ``(n_seeds, N)``.
    unfinished
        Positions in ``seeds`` that did not converge; their rows are zero.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> path = sparse.csr_array(np.array([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]))
    >>> ranks, unfinished = personalised_pagerank(path, np.array([0]), alpha=0.5, tol=1e-9, max_iter=100)
    >>> ranks.round(4)
    array([[0.5833, 0.3333, 0.0833]])
    """
    n = adjacency.shape[0]
    degrees = np.asarray(adjacency.sum(axis=0), dtype=np.float64)
    isolated = degrees == 0
    walk = (adjacency @ sparse.diags_array(1.0 / np.where(isolated, 1.0, degrees))).tocsr()
    ranks = np.zeros((len(seeds), n))
    running = np.arange(len(seeds))
    now = np.full((n, len(seeds)), 1.0 / n)
    for _ in range(max_iter):
        before = now
        now = alpha * (walk @ before)
        now[seeds[running], np.arange(len(running))] += alpha * before[isolated].sum(axis=0) + (1 - alpha)
        done = np.abs(now - before).sum(axis=0) < n * tol
        if done.any():
            ranks[running[done]] = now[:, done].T
            now, running = now[:, ~done], running[~done]
        if not len(running):
            break
    return ranks, running
