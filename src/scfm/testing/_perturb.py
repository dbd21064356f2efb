"""Effects of perturbations, with a pass of the network for each changed copy of each cell."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._types import TokenBatch
from scfm.model.arguments import Arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from scfm.model import FoundationModel
    from scfm.model.session import Session
    from scfm.tasks import Effect, Kind

__all__ = ["perturb_effects"]

Cell = list[tuple[int, float]]
"""Tokens of a cell with their values; NaN where the model reads tokens alone."""


def perturb_effects(
    model: FoundationModel,
    adata: AnnData,
    kind: Kind,
    groups: Sequence[Sequence[int]] | None = None,
    targets: ArrayLike | None = None,
    *,
    effect: Effect = "embedding",
    highest: float = np.nan,
    whole: bool = False,
    pooling: str | None = None,
    **options: Any,
) -> dict[tuple[int, int], NDArray[np.float64]]:
    """What :func:`scfm.tl.perturb` computes, by lists and loops.

    Parameters
    ----------
    model, adata, kind, effect, pooling, **options
        As for :func:`scfm.tl.perturb`, without ``compat``.
    groups
        Tokens that are changed together; ``None``: each gene of a cell by itself.
    targets
        Embeddings of states, shape ``(n_states, n_features)``.
    highest, whole
        Of a model that reads values: the largest, and whether they are whole numbers.

    Returns
    -------
    Effects (one, or one for each state) by cell and number of the group, or token of the gene.
    """
    pooling = "gene" if effect == "likelihood" else pooling
    found = {}
    with model.count_session(
        adata, Arguments(device="cpu", dtype="float32", pooling=pooling, options=options)
    ) as session:
        blocks = session.encoded([(0, adata.n_obs)])
        cells = [_cell(block.tokens, block.values, *ends) for block in blocks for ends in pairwise(block.offsets)]
        for row, cell in enumerate(cells):
            own = _genes(session, cell)
            for tag, group in ((gene, [gene]) for gene in own) if groups is None else enumerate(groups):
                expressed = set(group) <= set(own)
                first = np.isnan(cell[0][1]) and groups is None and own.index(tag) == 0
                if (
                    set(own) <= set(group)
                    or not (expressed or kind == "overexpress")
                    or (first and kind == "overexpress")
                ):
                    continue
                at = next(i for i, (token, _) in enumerate(cell) if token in own)
                genes = [pair for pair in cell if pair[0] in own]
                changed = _changed(genes, list(group), kind, session.model.max_genes(session.options), highest, whole)
                copy = [*cell[:at], *changed, *cell[at + len(genes) :]]
                found[row, tag] = _effect(session, cell, copy, set(group), targets, effect)
    return found


def _cell(tokens: Any, values: Any, start: int, stop: int) -> Cell:
    return [(int(tokens[i]), np.nan if values is None else float(values[i])) for i in range(start, stop)]


def _genes(session: Session, cell: Cell) -> list[int]:
    known = session.model.vocabulary.tokens
    return [token for token, _ in cell if token in known]


def _changed(cell: Cell, group: list[int], kind: str, longest: int, highest: float, whole: bool) -> Cell:
    """The genes of a cell after a change of some of them."""
    rest = [pair for pair in cell if pair[0] not in group]
    if kind == "delete":
        return rest
    own = [token for token, _ in cell]
    if np.isnan(cell[0][1]):
        if kind == "overexpress":
            return [*((token, np.nan) for token in group), *rest][:longest]
        step, n, k = int(np.ceil(len(own) / 4)), len(own), len(group)
        for i, token in enumerate(sorted(group, key=own.index)):
            place = own.index(token) + (step if kind == "inhibit" else -step)
            rest.insert(min(max(place, i), n - k + i), (token, np.nan))
        return rest
    if kind == "overexpress":
        absent = [(token, highest) for token in group if token not in own]
        return [*absent, *((token, highest if token in group else value) for token, value in cell)][:longest]
    factor = 0.5 if kind == "inhibit" else 2
    changed = {token: min(factor * value, highest) for token, value in cell if token in group}
    return [
        (token, (int(changed[token]) if whole else changed[token]) if token in group else value)
        for token, value in cell
    ]


def _effect(
    session: Session, cell: Cell, copy: Cell, group: set[int], targets: ArrayLike | None, effect: str
) -> NDArray[np.float64]:
    shared = (set(_genes(session, cell)) & set(_genes(session, copy))) - group
    if effect == "likelihood":
        before, after = ({t: x for (t, _), x in zip(one, _scores(session, one), strict=True)} for one in (cell, copy))
        return np.asarray([sum(after[gene] - before[gene] for gene in shared)])
    if session.options.pooling in session.model.context_poolings:
        states = [
            {token: x for (token, _), x in zip(one, _output(session, one, "gene"), strict=True)} for one in (cell, copy)
        ]
        e, changed = (np.mean([one[gene] for gene in shared], axis=0) for one in states)
    else:
        e, changed = (_output(session, one, session.options.pooling)[0] for one in (cell, copy))
    if targets is None:
        return np.asarray([1 - _cosine(changed, e)])
    return np.asarray([_cosine(changed, target) - _cosine(e, target) for target in np.asarray(targets)])


def _output(session: Session, cell: Cell, pooling: str) -> NDArray[np.float64]:
    import torch

    with torch.inference_mode():
        output = session.model.forward(session.networks()[0], _batch(cell), replace(session.options, pooling=pooling))
    return output.double().numpy()


def _scores(session: Session, cell: Cell) -> NDArray[np.float64]:
    """Log-likelihood of each token of a cell."""
    import torch

    with torch.inference_mode():
        score = session.model.scorer(session.options, session.device, session.dtype)
        return score(session.networks()[0], _batch(cell)).double().numpy()[:, :2].sum(axis=1)


def _batch(cell: Cell) -> TokenBatch:
    tokens, values = np.asarray([token for token, _ in cell]), np.asarray([value for _, value in cell], np.float32)
    return TokenBatch(np.zeros(1, int), tokens, np.asarray([len(cell)]), None if np.isnan(values).any() else values)


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
