"""Score types of the ontology for each cell, including types that the reference does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import rankdata

from scfm._checks import typed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["novel_type_scores", "prototypes"]

BLOCK = 1_000_000
"""Values of an array of a block; about five such arrays of 8 bytes per value exist at a time."""


@typed
def prototypes(values: NDArray[Any], labels: ArrayLike, categories: Sequence[Any]) -> NDArray[np.float64]:
    """Mean vector of the cells of each type.

    Parameters
    ----------
    values
        One vector per cell, shape ``(n_cells, d)``.
    labels
        Type of each cell, shape ``(n_cells,)``. Cells without a type, or with one not in ``categories``, are ignored.
    categories
        Unique types.

    Returns
    -------
    float64, shape ``(n_categories, d)``; zero for a type without cells.

    Raises
    ------
    ValueError
        If shapes do not match, no cell has a type of ``categories``, categories repeat, or a mean is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from scfm.ontology import prototypes
    >>> cells = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]])
    >>> prototypes(cells, ["T cell", "T cell", "B cell"], categories=["T cell", "NK cell"])
    array([[2., 3.],
           [0., 0.]])
    """
    values = _matrix(values, "values")
    known = pd.Index(list(categories))
    if not known.is_unique:
        msg = f"categories holds {known[known.duplicated()][0]!r} more than once."
        raise ValueError(msg)
    found = np.asarray(labels)
    if found.shape != values.shape[:1]:
        msg = f"labels must be one for each of {len(values)} cells; got shape {found.shape}."
        raise ValueError(msg)
    codes = known.get_indexer(found)
    cells = np.flatnonzero(codes >= 0)
    if not len(cells):
        msg = f"No label is one of the {len(categories)} categories, e.g. {list(categories)[:3]}."
        raise ValueError(msg)
    sums = np.zeros((len(categories), values.shape[1]))
    rows = max(1, BLOCK // max(1, values.shape[1]))
    for start in range(0, len(cells), rows):
        part = cells[start : start + rows]
        place = (codes[part], np.arange(len(part)))
        sums += sparse.csr_array((np.ones(len(part)), place), shape=(len(sums), len(part))) @ values[part]
    means = sums / np.maximum(np.bincount(codes[cells], minlength=len(sums)), 1)[:, None]
    bad = np.flatnonzero(~np.isfinite(means).all(axis=1))
    if len(bad):
        msg = f"Cells of {categories[bad[0]]!r} have values that are not finite; leave them out."
        raise ValueError(msg)
    return means


@typed
def novel_type_scores(
    values: NDArray[Any],
    prototypes: NDArray[Any],
    ppr: NDArray[Any],
    *,
    targets: Sequence[str] | None = None,
) -> NDArray[np.float64]:
    """Agreement of each cell's similarity to known types with the neighbourhood of each target type in the ontology.

    For each cell and target, the Spearman correlation between the cosines of the cell to the prototypes of all known
    types and the PageRank from the target to these types. The target itself needs no prototype. The predicted type is
    the one with the highest score; as in scCello (Yuan et al. 2024, arXiv:2408.12373), PageRank is taken as float32.

    Parameters
    ----------
    values
        One vector per cell, shape ``(n_cells, d)``; read in blocks.
    prototypes
        One vector per known type, shape ``(n_types, d)``, from :func:`scfm.ontology.prototypes`. The cosine with a zero
        vector is 0.
    ppr
        PageRank from each target to each known type, shape ``(n_targets, n_types)``, from
        :meth:`CellOntology.pagerank <scfm.ontology.CellOntology.pagerank>`.
    targets
        Names of the targets, for messages.

    Returns
    -------
    float64 in [-1, 1], shape ``(n_cells, n_targets)``. NaN for a cell that is equally similar to all types, such as
    one whose vector is zero or not finite.

    Raises
    ------
    ValueError
        If shapes do not match, a prototype or PageRank is not finite, or the PageRank from a target is the same to all
        types, so that no correlation is defined. (scCello then always predicts that target.)

    Examples
    --------
    >>> import numpy as np
    >>> import scfm.ontology
    >>> onto = scfm.ontology.bundled()
    >>> known = onto.resolve(["CD8-positive, alpha-beta T cell", "B cell", "monocyte", "fibroblast"])
    >>> targets = onto.resolve(["CD4-positive, alpha-beta T cell", "macrophage"])
    >>> cells = np.array([[0.9, 0.4, 0.1, 0.0]])  # most like the known T cell
    >>> scores = scfm.ontology.novel_type_scores(cells, np.eye(4), onto.pagerank(targets, to=known))
    >>> int(scores.argmax())
    0
    """
    values, directions = _matrix(values, "values"), _matrix(prototypes, "prototypes").astype(np.float64)
    ppr = _matrix(ppr, "ppr").astype(np.float32)
    if values.shape[1] != directions.shape[1] or ppr.shape[1] != len(directions):
        msg = (
            "values (n_cells, d), prototypes (n_types, d) and ppr (n_targets, n_types) do not match: "
            f"found {values.shape}, {directions.shape} and {ppr.shape}."
        )
        raise ValueError(msg)
    for name, array in (("prototypes", directions), ("ppr", ppr)):
        if not np.isfinite(array).all():
            msg = f"{name} holds values that are not finite."
            raise ValueError(msg)
    rank_targets = _standard_ranks(ppr)
    constant = np.flatnonzero(np.isnan(rank_targets).any(axis=1))
    if len(constant):
        named = [repr(targets[i]) if targets is not None else f"in row {i}" for i in constant.tolist()]
        msg = (
            f"PageRank from the target {', '.join(named)} is the same to all {len(directions)} types, so nothing "
            "correlates with it. Give targets of the ontology, and more than one known type."
        )
        raise ValueError(msg)
    directions, same = np.unique(_unit_rows(directions), axis=0, return_inverse=True)  # so that equal prototypes tie
    scores = np.empty((len(values), len(ppr)))
    rows = max(1, BLOCK // max(ppr.shape[1], values.shape[1], len(ppr)))
    for start in range(0, len(values), rows):
        with np.errstate(invalid="ignore"):  # cells that are not finite come out as NaN
            cells = _unit_rows(np.asarray(values[start : start + rows], dtype=np.float64))
            ranks = _standard_ranks((cells @ directions.T)[:, same.ravel()])
        scores[start : start + rows] = ranks @ rank_targets.T
    return np.clip(scores, -1.0, 1.0, out=scores)


def _standard_ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Average-tie ranks of each row, with mean 0 and length 1; NaN for a row that is constant or not finite."""
    ranks = rankdata(values, axis=1) - (values.shape[1] + 1) / 2
    lengths = np.sqrt(np.einsum("ij,ij->i", ranks, ranks))
    lengths[(lengths == 0) | ~np.isfinite(values).all(axis=1)] = np.nan
    ranks /= lengths[:, None]
    return ranks


def _unit_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths > 0, lengths, 1.0)


def _matrix(values: NDArray[Any], name: str) -> NDArray[Any]:
    values = np.asarray(values)
    if values.ndim != 2:
        msg = f"{name} must have two dimensions; found shape {values.shape}."
        raise ValueError(msg)
    return values
