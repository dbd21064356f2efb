"""Which genes move cells more than others do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfm._checks import typed
from scfm._keys import PARAMS, PERTURB, RANDOM_SHIFTS, STATES, STATS, STATS_PARAMS
from scfm._warn import warn
from scfm.metrics.shift_tests import (
    adjusted,
    against_null,
    against_others,
    against_random,
    impact_of,
    means_of,
    paired,
    summary,
)
from scfm.metrics.shifts import Shifts, effects_on_genes, shifts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scfm._types import Compat

    PValues = Callable[[Shifts], tuple[NDArray[np.float64], NDArray[np.float64]]]
    """Statistic and p-value of each gene."""

__all__ = ["perturb_stats"]

Test = Literal["paired", "random_states", "ranksum", "null", "mixture"]
DONORS = ("donor_id", "donor", "individual", "patient", "subject")
"""Columns of obs that tell whose cells they are."""


@typed
def perturb_stats(
    adata: AnnData,
    key: str = PERTURB,
    test: Test = "paired",
    *,
    state: str = "goal",
    null_genes: Sequence[str] | None = None,
    null_key: str | None = None,
    single_key: str | None = None,
    gene: str | None = None,
    donors_key: str | None = None,
    groupby: str | None = None,
    compat: Compat | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Test which genes move the cells more, or in another direction, than other genes do.

    What a test says is that the effect is consistent across cells (or donors), in the eyes of the model. It does not say
    that the gene causes the change in a living cell.

    Parameters
    ----------
    adata
        With the results of :func:`scfm.tl.perturb`.
    key
        ``key_added`` of :func:`scfm.tl.perturb`.
    test
        ``"paired"``: signed-rank test, over cells, of the place of a gene among the genes of the same cell, ranked by effect.
        ``"random_states"``: the mean shift of a gene towards the goal against those towards goals under permuted labels
        (``random_states`` of :func:`scfm.tl.perturb`); it says whether the goal differs from the start in the direction in
        which the gene moves the cells, not whether the gene differs from others.
        ``"ranksum"``: the effects of a gene against those of all other genes. ``"null"``: against its own effects in
        ``null_key``, or those of ``null_genes``. ``"mixture"``: two normal distributions are fitted to the mean effects; a
        gene has an impact if it belongs to the one with the larger mean.
    state
        With states, the one whose shifts are tested: ``"goal"``, ``"start"``, ``"alternative_1"`` and so on.
    null_genes
        Genes whose effects are the null.
    null_key
        ``key_added`` of another perturbation of the same genes, of other cells.
    single_key
        ``key_added`` of a perturbation of the single genes of the groups of ``key``: what is tested is the effect of a group
        minus the sum of those of its genes.
    gene
        Gene or group that was perturbed under ``gene_effects=True``: what is tested are its effects on the other genes, by
        ``"mixture"``; only means over cells are known of them.
    donors_key
        Column of ``obs`` with the donor of each cell, whose means are tested then. Cells of a donor are not independent:
        without it, p-values are too small.
    groupby
        Column of ``obs``; each of its values is tested by itself.
    compat
        ``"upstream"``: as Geneformer's ``InSilicoPerturberStats``. In ``"ranksum"`` the null then holds the tested gene
        and is reduced to 100,000 values, in ``"mixture"`` the first component is taken for the one with an impact.
    copy
        Change and return a copy instead.

    Returns
    -------
    ``None``, or the changed copy. Sets ``.uns['perturb' | key]['stats']``, a DataFrame that
    :func:`scfm.get.perturb_df` reads: ``group``, ``names``, ``effect`` (mean), ``sd``, ``n_cells``, ``n_donors``, ``statistic``,
    ``pvals``, ``pvals_adj`` (Benjamini–Hochberg within the group), ``direction`` with states, and for ``"mixture"`` instead
    ``impact`` and ``impact_share`` (of the cells; not with ``gene``). Sorted by p-value, then by size of the effect.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If a result, a state, a column or a gene is not found.
    ValueError
        If arguments do not belong together.

    Examples
    --------
    >>> import scfm
    >>> adata = scfm.datasets.pbmc68k()[:20].copy()
    >>> scfm.tl.perturb(adata, "scfm-mini", genes=["NKG7", "CD74", "HLA-DRA"])
    >>> scfm.tl.perturb_stats(adata)
    >>> scfm.get.perturb_df(adata).columns.tolist()[:4]
    ['group', 'names', 'effect', 'sd']
    """
    given: dict[str, Any] = {"state": state, "null_key": null_key, "single_key": single_key, "gene": gene}
    given |= {"donors_key": donors_key, "groupby": groupby}
    given["null_genes"] = None if null_genes is None else list(null_genes)
    _check_together(test, given)
    if gene is None:
        shifts = shifts_of(adata, key, state)
        if single_key is not None:
            shifts = _beyond_sum(shifts, adata.uns[key][PARAMS], shifts_of(adata, single_key, state))
        donors, groups = _column(adata, donors_key, "donors_key"), _column(adata, groupby, "groupby")
        if donors is None and test != "random_states":
            _warn_of_donors(adata)
        codes = None if donors is None else np.asarray(donors.codes, np.int64)
        pvals_of = _test_of(adata, key, test, given, shifts, codes, upstream=compat is not None)
        tables = []
        for code, group in enumerate(["all"] if groups is None else groups.categories):
            own = shifts if groups is None else shifts.of(groups.codes[shifts.cells] == code)
            if not len(own.values):
                continue
            tables.append(_table(own, codes, pvals_of, upstream=compat is not None).assign(group=str(group)))
        if not tables:
            msg = f"{key!r} holds no effect on these cells, so there is nothing to test; pass the cells that were perturbed."
            raise ValueError(msg)
        table = pd.concat(tables, ignore_index=True)
    else:
        table = _on_genes(effects_on_genes(adata, key, gene), upstream=compat is not None)
    table = table.assign(group=pd.Categorical(table["group"]))[["group", *table.columns.drop("group")]]
    result = adata.uns[key]
    if STATES in result[PARAMS] and gene is None:
        table["direction"] = np.where(table["effect"] > 0, "towards", "away")
    changed = adata.copy() if copy else adata
    changed.uns[key] = {**result, STATS: table, STATS_PARAMS: {"test": test, **given, "compat": compat}}
    return changed if copy else None


def _check_together(test: Test, given: Mapping[str, Any]) -> None:
    asked = {name for name, value in given.items() if value is not None}
    if test == "null" and (given["null_genes"] is None) == (given["null_key"] is None):
        msg = "test='null' takes either null_key=, another perturbation, or null_genes=, whose effects are the null."
        raise ValueError(msg)
    if test == "random_states":
        unfit = sorted(asked & {"single_key", "gene", "donors_key", "groupby"})
        if unfit or given["state"] != "goal":
            found = f"{unfit[0]}=" if unfit else f"state={given['state']!r}"
            msg = f"test='random_states' permutes the labels of all cells of start and goal, so it does not go with {found}."
            raise ValueError(msg)
    if given["gene"] is not None:
        unfit = sorted(asked & {"single_key", "donors_key", "groupby"})
        if test != "mixture" or unfit:
            found = f"{unfit[0]}=" if unfit else f"test={test!r}"
            msg = f"Of effects on other genes only means over cells are known; gene= takes test='mixture', not {found}."
            raise ValueError(msg)


def _warn_of_donors(adata: AnnData) -> None:
    known = [name for name in DONORS if name in adata.obs and adata.obs[name].nunique() > 1]
    if known:
        warn(
            f"obs has the column {known[0]!r}: cells of one donor are not independent, so that p-values are too small; "
            f"pass donors_key={known[0]!r}."
        )


def _test_of(
    adata: AnnData,
    key: str,
    test: Test,
    given: Mapping[str, Any],
    shifts: Shifts,
    donors: NDArray[np.int64] | None,
    *,
    upstream: bool,
) -> PValues | None:
    """The test as a function of the effects of a group of cells; ``None`` for the mixture, which has no p-values."""
    if test == "mixture":
        return None
    if test == "paired":
        return lambda own: paired(own, donors)
    if test == "ranksum":
        return lambda own: against_others(own, upstream=upstream)
    if test == "null":
        null = _null(adata, shifts, given["state"], given["null_genes"], given["null_key"])
        return lambda own: against_null(own, null, by_gene=given["null_genes"] is None)
    random_shifts = _random_shifts(adata, key, shifts.names)
    return lambda own: against_random(means_of(own), random_shifts)


def _table(
    shifts: Shifts, donors: NDArray[np.int64] | None, pvals_of: PValues | None, *, upstream: bool
) -> pd.DataFrame:
    table = summary(shifts, donors)
    rows = table.index.to_numpy()
    if pvals_of is None:
        has_impact = impact_of(table["effect"].to_numpy(), upstream=upstream)
        share = means_of(shifts, has_impact(shifts.values))
        table = table.assign(impact=has_impact(table["effect"].to_numpy()), impact_share=share[rows])
        return table.sort_values(["impact", "effect"], ascending=False)
    statistic, pvals = pvals_of(shifts)
    table = table.assign(statistic=statistic[rows], pvals=pvals[rows], pvals_adj=adjusted(pvals[rows]))
    return table.sort_values(
        ["pvals", "effect"], key=lambda column: column if column.name == "pvals" else -column.abs()
    )


def _on_genes(effects: pd.DataFrame, *, upstream: bool) -> pd.DataFrame:
    """The mixture of the effects of one gene on others, in the columns of the other tables."""
    values = effects["effect"].to_numpy(np.float64)
    impact = impact_of(values, upstream=upstream)(values)
    table = effects.drop(columns="names").rename(columns={"affected": "names"})
    table = table.assign(group="all", n_donors=0, impact=impact)
    return table.sort_values(["impact", "effect"], ascending=False, ignore_index=True)


def _random_shifts(adata: AnnData, key: str, names: pd.Index) -> NDArray[np.float64]:
    """Those of each name, NaN for one that has none."""
    found = adata.uns[key].get(RANDOM_SHIFTS)
    if found is None:
        msg = (
            f"uns[{key!r}] holds no shifts towards random states, which take the embeddings of the perturbed cells; call "
            "scfm.tl.perturb(adata, model, states_key=, start=, goal=, random_states=200)."
        )
        raise KeyError(msg)
    return found.reindex(names).to_numpy(np.float64)


def _null(adata: AnnData, shifts: Shifts, state: str, null_genes: Sequence[str] | None, null_key: str | None) -> Shifts:
    if null_key is not None:
        return shifts_of(adata, null_key, state)
    wanted = [null_genes] if isinstance(null_genes, str) else list(null_genes or ())
    codes = shifts.names.get_indexer(pd.Index(wanted))
    if (codes < 0).any() or not len(codes):
        msg = f"null_genes={wanted} were not all perturbed; names of perturbed genes are like {list(shifts.names[:3])}."
        raise KeyError(msg)
    return shifts.of(np.isin(shifts.genes, codes))


def _beyond_sum(shifts: Shifts, params: Mapping[str, Any], single: Shifts) -> Shifts:
    """Effects of groups minus the sums of those of their genes, in cells that have all of them."""
    groups, anchor = params["groups"], params["anchor"]
    of_gene = pd.Series(single.values, pd.MultiIndex.from_arrays([single.cells, single.names[single.genes]]))
    sums = np.zeros(len(shifts.values))
    for code in np.unique(shifts.genes).tolist():
        own = shifts.genes == code
        name = shifts.names[code]
        for gene in [*groups.get(name, [name]), *([] if anchor is None else [anchor])]:
            wanted = pd.MultiIndex.from_arrays([shifts.cells[own], [gene] * int(own.sum())])
            sums[own] += of_gene.reindex(wanted).to_numpy()
    kept = np.isfinite(sums)
    if not kept.any():
        msg = "single_key= holds no cell with the effects of all genes of a group; perturb the genes one by one under that key."
        raise ValueError(msg)
    return replace(shifts, values=shifts.values - sums).of(kept)


def _column(adata: AnnData, name: str | None, argument: str) -> pd.Categorical | None:
    if name is None:
        return None
    if name not in adata.obs:
        msg = f"{argument}={name!r} is not a column of obs; found {list(adata.obs.columns)}."
        raise KeyError(msg)
    return pd.Categorical(adata.obs[name]).remove_unused_categories()
