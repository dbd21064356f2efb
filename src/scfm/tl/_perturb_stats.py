"""Which genes move cells more than others do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfm._checks import typed
from scfm._keys import PARAMS, PERTURB, STATES, STATS, STATS_PARAMS
from scfm._warn import warn
from scfm.metrics.shift_tests import against_null, against_others, mixture, paired, summary
from scfm.metrics.shifts import Shifts, shifts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scfm._types import Compat

__all__ = ["perturb_stats"]

Test = Literal["paired", "ranksum", "null", "mixture"]
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
    ``pvals``, ``pvals_adj`` (Benjamini–Hochberg within the group), ``direction``, and for ``"mixture"`` ``impact`` and
    ``impact_share`` (of the cells). Sorted by p-value, then by size of the effect.

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
    shifts, result = shifts_of(adata, key, state), adata.uns[key]
    if single_key is not None:
        shifts = _beyond_sum(shifts, result[PARAMS], shifts_of(adata, single_key, state))
    null = _null(adata, shifts, state, null_genes, null_key) if test == "null" else None
    donors, groups = _column(adata, donors_key, "donors_key"), _column(adata, groupby, "groupby")
    known = [name for name in DONORS if name in adata.obs and adata.obs[name].nunique() > 1]
    if donors is None and known:
        warn(
            f"obs has the column {known[0]!r}: cells of one donor are not independent, so that p-values are too small; "
            f"pass donors_key={known[0]!r}."
        )
    tables = []
    for code, group in enumerate(["all"] if groups is None else groups.categories):
        own = shifts if groups is None else shifts.of(groups.codes[shifts.cells] == code)
        codes = None if donors is None else np.asarray(donors.codes, np.int64)
        tables.append(
            _table(own, test, codes, null, by_gene=null_genes is None, upstream=compat is not None).assign(
                group=str(group)
            )
        )
    table = pd.concat(tables, ignore_index=True)
    table = table.assign(group=pd.Categorical(table["group"]))[["group", *table.columns.drop("group")]]
    if STATES in result[PARAMS]:
        table["direction"] = np.where(table["effect"] > 0, "towards", "away")
    changed = adata.copy() if copy else adata
    given: dict[str, Any] = {
        "test": test,
        "state": state,
        "null_key": null_key,
        "single_key": single_key,
        "donors_key": donors_key,
    }
    given |= {"groupby": groupby, "null_genes": None if null_genes is None else list(null_genes), "compat": compat}
    changed.uns[key] = {**result, STATS: table, STATS_PARAMS: given}
    return changed if copy else None


def _table(
    shifts: Shifts, test: Test, donors: NDArray[np.int64] | None, null: Shifts | None, *, by_gene: bool, upstream: bool
) -> pd.DataFrame:
    from scipy.stats import false_discovery_control

    table = summary(shifts, donors)
    rows = table.index.to_numpy()
    if test == "mixture":
        effect = table["effect"].reindex(range(len(shifts.names))).to_numpy()
        impact, share = mixture(shifts, effect, upstream=upstream)
        table = table.assign(impact=impact[rows], impact_share=share[rows])
        return table.sort_values(["impact", "effect"], ascending=False)
    if test == "paired":
        statistic, pvals = paired(shifts, donors)
    elif test == "ranksum":
        statistic, pvals = against_others(shifts, upstream=upstream)
    else:
        assert null is not None
        statistic, pvals = against_null(shifts, null, by_gene=by_gene)
    table = table.assign(statistic=statistic[rows], pvals=pvals[rows], pvals_adj=np.nan)
    valid = table["pvals"].notna()
    table.loc[valid, "pvals_adj"] = false_discovery_control(table.loc[valid, "pvals"])
    return table.sort_values(
        ["pvals", "effect"], key=lambda column: column if column.name == "pvals" else -column.abs()
    )


def _null(adata: AnnData, shifts: Shifts, state: str, null_genes: Sequence[str] | None, null_key: str | None) -> Shifts:
    if (null_genes is None) == (null_key is None):
        msg = "test='null' takes either null_key=, another perturbation, or null_genes=, whose effects are the null."
        raise ValueError(msg)
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
