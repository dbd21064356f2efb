"""The graph of an ontology: terms, edges, ancestors, PageRank and similarity."""

from __future__ import annotations

from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components

from scfm._text import some
from scfm.ontology.labels import LabelIndex
from scfm.ontology.pagerank import personalised_pagerank

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["CellOntology", "Relation"]

Relation = Literal["is_a", "upstream"]

SEEDS_AT_ONCE = 256
"""Number of PageRank vectors that are iterated together."""
SIMILARITY_UNIT = 1e-4
"""PageRank of the lowest level of similarity."""


class CellOntology:
    """Cell types and the relations between them.

    Read one from a file with :func:`scfm.ontology.read_ontology`, or build it from ids and edges.

    Parameters
    ----------
    ids
        Ids of the terms, such as ``"CL:0000084"``. An empty id is not allowed.
    edges
        Pairs (child, parent), shape ``(n_edges, 2)``: ids, or integer positions in ``ids``. Repeated pairs count once.
    names
        Id → name. A term without a name is called by its id.
    synonyms
        Id → exact synonyms.
    replaced
        Id of an obsolete or merged term → ids that replace it. These ids need not be among ``ids``.
    relation
        Meaning of the edges. ``"is_a"``: a child is a kind of its parent; there are no cycles. ``"upstream"``: whatever
        scCello takes for an edge; there may be cycles, and self-loops are dropped.
    version
        Release of the ontology, if known.

    Raises
    ------
    ValueError
        If there is no id, ids repeat, an edge names an unknown term, or ``is_a`` edges form a cycle.

    Examples
    --------
    >>> from scfm.ontology import CellOntology
    >>> onto = CellOntology(
    ...     ["CL:0000542", "CL:0000084", "CL:0000236"],
    ...     [("CL:0000084", "CL:0000542"), ("CL:0000236", "CL:0000542")],
    ...     names={"CL:0000542": "lymphocyte", "CL:0000084": "T cell", "CL:0000236": "B cell"},
    ... )
    >>> onto
    CellOntology(3 terms, 2 is_a edges)
    >>> onto.resolve(["t cell", "CL:0000236"])
    array(['CL:0000084', 'CL:0000236'], dtype='<U10')
    >>> onto.similarity(["CL:0000084", "CL:0000542", "CL:0000236"])
    array([[11, 12, 11],
           [11, 12, 11],
           [11, 12, 11]], dtype=int32)
    """

    def __init__(
        self,
        ids: Iterable[str],
        edges: Iterable[tuple[str, str]] | ArrayLike,
        *,
        names: Mapping[str, str] | None = None,
        synonyms: Mapping[str, Sequence[str]] | None = None,
        replaced: Mapping[str, Sequence[str]] | None = None,
        relation: Relation = "is_a",
        version: str | None = None,
    ) -> None:
        given = np.array([str(id) for id in ids], dtype=np.str_)
        self.ids: NDArray[np.str_]
        """Ids of the terms, sorted, shape ``(n,)``."""
        self.ids, counts = np.unique(given, return_counts=True)
        if not len(given):
            msg = "An ontology needs at least one term (CL:...); found none."
            raise ValueError(msg)
        bad = self.ids[(counts > 1) | (self.ids == "")]
        if len(bad):
            msg = f"Ids must be unique and not empty; found more than once or empty: {some(map(repr, bad.tolist()))}."
            raise ValueError(msg)
        names, synonyms = names or {}, synonyms or {}
        self._position = {id: i for i, id in enumerate(self.ids.tolist())}
        self.names: NDArray[np.str_] = np.array([names.get(id, id) for id in self._position], dtype=np.str_)
        """Name of each term, in the order of ``ids``."""
        self.synonyms: Mapping[str, tuple[str, ...]] = MappingProxyType(
            {id: tuple(synonyms[id]) for id in self._position if synonyms.get(id)}
        )
        """Exact synonyms of each term that has any."""
        self._replaced = dict(replaced or {})
        self.relation: Relation = relation
        """Meaning of the edges."""
        self.version = version
        """Release of the ontology, if known."""
        self.graph_edges: NDArray[np.int64] = self._checked_edges(given, edges)
        """Positions (child, parent) in ``ids``, sorted, shape ``(n_edges, 2)``."""
        self.ids.flags.writeable = self.names.flags.writeable = self.graph_edges.flags.writeable = False

    def _checked_edges(
        self, given: NDArray[np.str_], edges: Iterable[tuple[str, str]] | ArrayLike
    ) -> NDArray[np.int64]:
        pairs = np.asarray(edges if isinstance(edges, np.ndarray) else list(edges))  # type: ignore[arg-type]
        pairs = pairs.reshape(-1, 2) if pairs.size == 0 else pairs
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            msg = f"edges must be pairs (child, parent), shape (n_edges, 2); found shape {pairs.shape}."
            raise ValueError(msg)
        if pairs.size and np.issubdtype(pairs.dtype, np.integer):
            if pairs.min() < 0 or pairs.max() >= len(given):
                msg = f"edges hold positions from {pairs.min()} to {pairs.max()}, but there are {len(given)} ids."
                raise ValueError(msg)
            pairs = given[pairs]
        known = self._position.keys()
        absent = [f"{child} → {parent}" for child, parent in pairs.tolist() if not {child, parent} <= known]
        if absent:
            msg = f"{len(absent)} edges lead to terms that are absent or obsolete: {some(absent)}."
            raise ValueError(msg)
        rows = np.array([[self._position[id] for id in pair] for pair in pairs.tolist()], dtype=np.int64).reshape(-1, 2)
        if self.relation == "upstream":
            rows = rows[rows[:, 0] != rows[:, 1]]
        rows = np.unique(rows, axis=0)
        if self.relation == "is_a":
            self._check_acyclic(rows)
        return rows

    def _check_acyclic(self, rows: NDArray[np.int64]) -> None:
        graph = _matrix(rows, len(self))
        _, part = connected_components(graph, connection="strong")
        cyclic = (np.bincount(part, minlength=len(self))[part] > 1) | (graph.diagonal() > 0)
        if cyclic.any():
            msg = f"is_a edges form a cycle through {some(self._show(i) for i in np.flatnonzero(cyclic).tolist())}."
            raise ValueError(msg)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: object) -> bool:
        return id in self._position

    def __repr__(self) -> str:
        version = f", {self.version}" if self.version else ""
        return f"CellOntology({len(self):,} terms, {len(self.graph_edges):,} {self.relation} edges{version})"

    def _show(self, i: int) -> str:
        return f"{str(self.names[i])!r} {self.ids[i]}"

    @cached_property
    def _labels(self) -> LabelIndex:
        names = dict(zip(self.ids.tolist(), self.names.tolist(), strict=True))
        return LabelIndex(names, self.synonyms, self._replaced)

    def resolve(self, labels: Iterable[str]) -> NDArray[np.str_]:
        """Map labels to ids of terms.

        A label is an id, a name or an exact synonym; case is ignored. Ids take precedence over names, and names over
        synonyms. The id of an obsolete or merged term maps to the term that replaces it.

        Parameters
        ----------
        labels
            Labels, with repeats.

        Returns
        -------
        Ids, str, shape ``(n_labels,)``.

        Raises
        ------
        ValueError
            If a label is unknown (the message lists the closest names), ambiguous (it lists the candidates), or means an
            obsolete term without a replacement.
        TypeError
            If ``labels`` is a single string.

        Examples
        --------
        >>> import scfm.ontology
        >>> scfm.ontology.bundled().resolve(["B-cell", "natural killer cell", "cl:0000084"]).tolist()
        ['CL:0000236', 'CL:0000623', 'CL:0000084']
        """
        return self._labels.find(labels)

    def name_of(self, id: str) -> str:
        """Name of a term, its id if it has none; ValueError if there is no such term."""
        return str(self.names[self._at(id)])

    def parents(self, id: str) -> NDArray[np.str_]:
        """Ids of the direct parents of a term, sorted; ValueError if there is no such term."""
        i, graph = self._at(id), self._parents
        return self.ids[np.sort(graph.indices[graph.indptr[i] : graph.indptr[i + 1]])]

    def ancestors(self, id: str) -> NDArray[np.str_]:
        """Ids of all ancestors of a term, sorted, without itself; ValueError if there is no such term."""
        return self.ids[_reachable(self._parents, self._at(id))]

    def descendants(self, id: str) -> NDArray[np.str_]:
        """Ids of all descendants of a term, sorted, without itself; ValueError if there is no such term."""
        return self.ids[_reachable(self._children, self._at(id))]

    @cached_property
    def _parents(self) -> sparse.csr_array:
        return _matrix(self.graph_edges, len(self))

    @cached_property
    def _children(self) -> sparse.csr_array:
        return self._parents.T.tocsr()

    def _at(self, id: str) -> int:
        if id not in self._position:
            msg = f"{id!r} is not the id of a term of this ontology; resolve() finds the ids of names."
            raise ValueError(msg)
        return self._position[id]

    def _rows(self, ids: Iterable[str] | None) -> NDArray[np.int64]:
        """Positions of ids, −1 for the empty id."""
        if ids is None:
            return np.arange(len(self))
        if isinstance(ids, str):
            msg = f"ids is one string; pass a list of ids: [{ids!r}]."
            raise TypeError(msg)
        return np.array([-1 if id == "" else self._at(str(id)) for id in ids], dtype=np.int64)

    def ancestor_mask(self, ids: Iterable[str] | None = None) -> NDArray[np.int32]:
        """Which terms are ancestors of which.

        Parameters
        ----------
        ids
            Ids of terms, with repeats; all by default. An empty id is a label without a term.

        Returns
        -------
        int32, shape ``(n_ids, n_ids)``; ``[i, j]`` is 1 if term j is an ancestor of term i or the same, otherwise 0.

        Raises
        ------
        ValueError
            If an id is unknown.

        Examples
        --------
        >>> import scfm.ontology
        >>> scfm.ontology.bundled().ancestor_mask(["CL:0000084", "CL:0000542"])  # T cell, lymphocyte
        array([[1, 1],
               [0, 1]], dtype=int32)
        """
        rows = self._rows(ids)
        mask = np.zeros((len(rows), len(rows)), dtype=np.int32)
        for i in np.flatnonzero(rows >= 0):
            above = np.zeros(len(self) + 1, dtype=bool)  # the last entry is that of the empty id
            above[_reachable(self._parents, int(rows[i]))] = above[rows[i]] = True
            mask[i] = above[rows]
        np.fill_diagonal(mask, 1)
        return mask

    def pagerank(
        self,
        ids: Iterable[str] | None = None,
        *,
        to: Iterable[str] | None = None,
        alpha: float = 0.9,
        tol: float = 1e-6,
        max_iter: int = 100,
    ) -> NDArray[np.float64]:
        """Personalised PageRank from some terms to others, over edges in both directions.

        The stationary probability of a random walk that at each step moves to a neighbour with probability ``alpha``
        and restarts otherwise. Equal to ``networkx.pagerank`` from each term: it starts from the uniform vector and
        stops at an L1 change below ``N · tol`` over the N terms. The default tolerance does not converge, but defines
        scCello's labels. Pass ``tol=1e-12, max_iter=1000`` for converged values.

        Parameters
        ----------
        ids
            Terms to start from, with repeats; all by default. An empty id is a label without a term; its row and column
            are zero.
        to
            Target terms; all by default.
        alpha
            Probability to continue the walk, at least 0 and below 1.
        tol
            Tolerance per term.
        max_iter
            Maximum number of iterations.

        Returns
        -------
        float64, shape ``(n_ids, n_to)``. Rows over all terms sum to 1.

        Raises
        ------
        ValueError
            If an id is unknown, or a number out of range.
        RuntimeError
            If ``max_iter`` iterations are not enough.

        Examples
        --------
        >>> import scfm.ontology
        >>> onto = scfm.ontology.bundled()
        >>> t_cell, b_cell, fibroblast = onto.resolve(["T cell", "B cell", "fibroblast"])
        >>> near, far = onto.pagerank([t_cell], to=[b_cell, fibroblast])[0]
        >>> bool(near > far)
        True
        """
        if not 0 <= alpha < 1 or not tol > 0 or max_iter < 1:
            msg = f"0 ≤ alpha < 1, tol > 0 and max_iter ≥ 1 are needed; found {alpha=}, {tol=}, {max_iter=}."
            raise ValueError(msg)
        rows, columns = self._rows(ids), self._rows(to)
        seeds, place = np.unique(rows[rows >= 0], return_inverse=True)
        found = np.zeros((len(seeds), len(columns)))
        for start in range(0, len(seeds), SEEDS_AT_ONCE):
            part = seeds[start : start + SEEDS_AT_ONCE]
            ranks, unfinished = personalised_pagerank(self._undirected, part, alpha=alpha, tol=tol, max_iter=max_iter)
            if len(unfinished):
                which = some(self._show(i) for i in part[unfinished].tolist())
                msg = f"PageRank did not converge in {max_iter=} iterations at {tol=}, from {which}. Raise either."
                raise RuntimeError(msg)
            found[start : start + SEEDS_AT_ONCE] = np.where(columns >= 0, ranks[:, columns], 0.0)
        result = np.zeros((len(rows), len(columns)))
        result[rows >= 0] = found[place]
        return result

    @cached_property
    def _undirected(self) -> sparse.csr_array:
        return ((self._parents + self._children) > 0).astype(np.float64)

    def similarity(self, ids: Iterable[str] | None = None) -> NDArray[np.int32]:
        """Levels of similarity between terms, as scCello learns them.

        With the PageRank p from term i to term j (``alpha`` 0.9), the level is 1 if p < 10⁻⁴ and
        ⌊log₂(p / 10⁻⁴ + 1)⌋ otherwise (Yuan et al. 2024, arXiv:2408.12373).

        Parameters
        ----------
        ids
            Ids of terms, with repeats; all by default. An empty id is a label without a term, which has level 1 with
            everything.

        Returns
        -------
        int32, shape ``(n_ids, n_ids)``, at least 1. It is not symmetric.

        Raises
        ------
        ValueError
            If an id is unknown.

        Examples
        --------
        >>> import scfm.ontology
        >>> onto = scfm.ontology.bundled()
        >>> levels = onto.similarity(onto.resolve(["T cell", "B cell", "fibroblast"]))
        >>> bool(levels[0, 0] > levels[0, 1] > levels[0, 2])
        True
        """
        ids = ids if ids is None or isinstance(ids, str) else list(ids)
        ranks = self.pagerank(ids, to=ids, max_iter=1_000)  # fewer than 30 terms need more than the usual 100
        levels = np.floor(np.log2(ranks * (1 / SIMILARITY_UNIT) + 1))
        return np.where(ranks < SIMILARITY_UNIT, 1, levels).astype(np.int32)


def _matrix(rows: NDArray[np.int64], n: int) -> sparse.csr_array:
    return sparse.csr_array((np.ones(len(rows)), (rows[:, 0], rows[:, 1])), shape=(n, n))


def _reachable(graph: sparse.csr_array, start: int) -> NDArray[np.int32]:
    """Sorted nodes that can be reached from a node, without itself."""
    return np.sort(breadth_first_order(graph, start, return_predecessors=False)[1:])
