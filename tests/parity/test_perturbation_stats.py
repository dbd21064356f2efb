"""Every table of Geneformer's InSilicoPerturberStats, from the shifts that its InSilicoPerturber wrote, or by our verbs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control

import scfm
from scfm.metrics.shift_tests import against_null, against_others, impact_of, means_of
from scfm.metrics.shifts import Shifts

from .layout import as_text

if TYPE_CHECKING:
    from pathlib import Path

TOLERANCE = 2e-6
"""Largest absolute difference of a cosine, from the README of the values."""

pytestmark = pytest.mark.usefixtures("one_thread")


class Tables:
    """Shifts and tables of a version of Geneformer."""

    def __init__(self, root: Path, version: str) -> None:
        self.folder = root / "fixtures" / "geneformer" / version
        with np.load(self.folder / "expected_isp.npz", allow_pickle=False) as file:
            self.expected = {name: as_text(values) for name, values in file.items()}
        dictionaries = root / "dictionaries" / version.upper()
        self.model: Any = scfm.model.load(self.folder, dictionaries=dictionaries)

    def table(self, name: str) -> pd.DataFrame:
        if not (self.folder / f"{name}.csv").exists():
            pytest.skip("this table is not committed")
        return pd.read_csv(self.folder / f"{name}.csv", index_col=0)

    def shifts(self, name: str, state: int | None = None) -> Shifts:
        """Shifts of one case towards a state; cosines as they are."""
        cells, tokens, values = (self.expected[f"upstream_{name}_{part}"] for part in ("cell", "token", "shift"))
        return shifts_from(cells, tokens, values if state is None else values[:, state])

    def perturbed(self, adata: ad.AnnData | None = None, **arguments: Any) -> ad.AnnData:
        """Cells of the start with what our verb says; genes in the order of upstream's tokens."""
        if adata is None:
            adata = ad.read_h5ad(self.folder / "isp_input.h5ad")
            adata = adata[self.expected["isp_cell_type"] == self.expected["state_names"][0]].copy()
            adata.var_names = adata.var["ensembl_id"].astype(str)
            adata = adata[
                :, sorted(adata.var_names, key=lambda gene: self.model.vocabulary.token_of.get(gene, -1))
            ].copy()
        run = {"compat": "upstream", "hidden_layer": -1, "device": "cpu", "dtype": "float32"}
        scfm.tl.perturb(adata, self.model, **run, **arguments)
        return adata


@pytest.fixture(scope="module", params=["v1", "v2"])
def upstream(reference: Path, request: pytest.FixtureRequest) -> Tables:
    return Tables(reference, request.param)


def shifts_from(cells: Any, tokens: Any, values: Any) -> Shifts:
    names, genes = np.unique(tokens, return_inverse=True)
    return Shifts(np.asarray(cells, np.int64), genes, np.asarray(values, np.float64), pd.Index(names))


def close(table: pd.DataFrame, shifts: Shifts, found: dict[str, Any]) -> None:
    """Compare columns with values of all names."""
    at = shifts.names.get_indexer(table["Gene"])
    assert (at >= 0).all()
    for name, values in found.items():
        np.testing.assert_allclose(values[at], table[name], atol=1e-6, rtol=1e-6, err_msg=name)


def effects(cosines: Shifts) -> Shifts:
    """Ours, which are one minus upstream's."""
    return Shifts(cosines.cells, cosines.genes, 1 - cosines.values, cosines.names)


def counts(shifts: Shifts) -> np.ndarray:
    return np.bincount(shifts.genes, minlength=len(shifts.names))


def test_shift_to_the_goal(upstream: Tables) -> None:
    table = upstream.table("stats_goal_state_shift")
    goal, first, second = (upstream.shifts("delall_goal_lm1", state) for state in (1, 2, 3))
    alternatives = upstream.expected["state_names"][2:].tolist()
    named = {"goal": ("Shift_to_goal_end", "Goal_end_vs_random_pval", "Goal_end_FDR", goal)}
    for name, shifts in zip(alternatives, (first, second), strict=True):
        named[name] = (f"Shift_to_alt_end_{name}", f"Alt_end_vs_random_pval_{name}", f"Alt_end_FDR_{name}", shifts)
    for mean, pval, fdr, shifts in named.values():
        pvals = against_others(shifts, upstream=True)[1]
        close(table, shifts, {mean: means_of(shifts), pval: pvals, fdr: false_discovery_control(pvals)})
    close(table, goal, {"N_Detections": counts(goal)})


def test_shift_of_a_group_to_the_goal(upstream: Tables) -> None:
    table = upstream.table("stats_goal_state_shift_group")
    genes = upstream.expected["group_genes"].tolist()
    names = upstream.expected["state_names"]
    for at, state in enumerate(names[1:].tolist(), start=1):
        shift = upstream.expected["upstream_delgrp_goal_lm1_shift"][:, at]
        column = "Shift_to_goal_end" if at == 1 else f"Shift_to_alt_end_{state}"
        assert len(genes) == 2
        np.testing.assert_allclose(shift.mean(), table[column].item(), atol=1e-6)


def test_against_other_cells(upstream: Tables) -> None:
    table = upstream.table("stats_vs_null")
    shifts, null = upstream.shifts("delall_nogoal_lm1"), upstream.shifts("delall_nogoal_null_lm1")
    pvals = against_null(shifts, null, by_gene=True)[1]
    found = {"Test_avg_shift": means_of(shifts), "N_Detections_test": counts(shifts)}
    close(table, shifts, found | {"Test_vs_null_pval": pvals, "Test_vs_null_FDR": false_discovery_control(pvals)})
    known = table[table["Null_avg_shift"].notna()]
    close(known, null, {"Null_avg_shift": means_of(null), "N_Detections_null": counts(null)})


def mixed(shifts: Shifts, effect: np.ndarray, *, upstream: bool = True) -> dict[str, np.ndarray]:
    has_impact = impact_of(effect, upstream=upstream)
    share = means_of(shifts, has_impact(shifts.values))
    return {"Impact_component": has_impact(effect), "Impact_component_percent": 100 * share}


def test_mixture_of_effects(upstream: Tables) -> None:
    shifts = effects(upstream.shifts("delall_nogoal_lm1"))
    effect = means_of(shifts)
    found = mixed(shifts, effect) | {"Test_avg_shift": 1 - effect, "N_Detections": counts(shifts)}
    close(upstream.table("stats_mixture_model"), shifts, found)


def test_mixture_of_the_effects_of_an_anchor(upstream: Tables) -> None:
    pairs = upstream.expected["upstream_delall_genes_lm1_pairs"]
    own = pairs[:, 1] == upstream.expected["anchor_token"]
    cosines = upstream.expected["upstream_delall_genes_lm1_pair_cos"][own]
    shifts = effects(shifts_from(pairs[own, 0], pairs[own, 2], cosines))
    effect = means_of(shifts)
    found = mixed(shifts, effect) | {"Test_avg_shift": 1 - effect, "N_Detections": counts(shifts)}
    close(upstream.table("stats_anchor_gene_effect"), shifts, found)


def test_mixture_by_the_verb(upstream: Tables) -> None:
    anchor = str(upstream.expected["anchor_gene"])
    table = upstream.table("stats_anchor_gene_effect").set_index("Ensembl_ID")
    adata = upstream.perturbed(genes=[anchor], gene_effects=True)
    scfm.tl.perturb_stats(adata, test="mixture", gene=anchor, compat="upstream")
    found = scfm.get.perturb_df(adata).set_index("names").loc[table.index]
    np.testing.assert_allclose(1 - found["effect"], table["Test_avg_shift"], atol=TOLERANCE)
    np.testing.assert_array_equal(found["impact"], table["Impact_component"])
    np.testing.assert_array_equal(found["n_cells"], table["N_Detections"])


def test_combinations_beyond_the_sum(upstream: Tables) -> None:
    """By our verb: the joint effects have the components, what is beyond the sum has the means."""
    table = upstream.table("formula_stats_anchor_combos1").set_index("Ensembl_ID")
    anchor = str(upstream.expected["anchor_gene"])
    adata = upstream.perturbed()
    others = [gene for gene in adata.var_names if gene != anchor]
    upstream.perturbed(adata, genes=others, anchor=anchor, key_added="pairs")
    scfm.tl.perturb_stats(adata, "pairs", single_key="perturb")
    beyond = scfm.get.perturb_df(adata, "pairs").set_index("names").loc[table.index]
    np.testing.assert_allclose(-beyond["effect"], table["Combo_minus_sum_shift"], atol=2 * TOLERANCE)
    scfm.tl.perturb_stats(adata, "pairs", test="mixture", compat="upstream")
    joint = scfm.get.perturb_df(adata, "pairs").set_index("names").loc[table.index]
    np.testing.assert_allclose(1 - joint["effect"], table["Combo_shift"], atol=TOLERANCE)
    np.testing.assert_array_equal(joint["impact"], table["Impact_component"])
    np.testing.assert_allclose(100 * joint["impact_share"], table["Impact_component_percent"])


def test_shifts_of_other_genes(upstream: Tables) -> None:
    """Rows of the cell itself are the means of the genes in our tables."""
    table = upstream.table("stats_aggregate_gene_shifts")
    table = table[table["Ensembl_ID"].notna()]
    adata = upstream.perturbed(genes=table["Ensembl_ID"].unique().tolist(), gene_effects=True)
    of_cells = table["Affected"] == "cell_emb"
    pairs = table[~of_cells].set_index(["Ensembl_ID", "Affected_Ensembl_ID"])
    found = scfm.get.perturb_df(adata, table="effects").set_index(["names", "affected"])
    assert len(found) == len(pairs)
    same(found.loc[pairs.index], pairs)
    scfm.tl.perturb_stats(adata)
    same(scfm.get.perturb_df(adata).set_index("names").loc[table["Ensembl_ID"][of_cells]], table[of_cells])


def test_shifts_of_other_genes_by_a_group(upstream: Tables) -> None:
    table = upstream.table("stats_aggregate_gene_shifts_group")
    group = tuple(upstream.expected["group_genes"].tolist())
    adata = upstream.perturbed(genes=[group], gene_effects=True)
    of_cells = table["Affected"] == "cell_emb"
    found = scfm.get.perturb_df(adata, table="effects", gene="+".join(group)).set_index("affected")
    same(found.loc[table["Affected_Ensembl_ID"][~of_cells]], table[~of_cells])
    assert len(found) == (~of_cells).sum()
    scfm.tl.perturb_stats(adata)
    same(scfm.get.perturb_df(adata), table[of_cells])


def same(found: pd.DataFrame, table: pd.DataFrame) -> None:
    np.testing.assert_allclose(1 - found["effect"], table["Cosine_sim_mean"], atol=TOLERANCE)
    np.testing.assert_allclose(found["sd"], table["Cosine_sim_stdev"], atol=TOLERANCE)
    np.testing.assert_array_equal(found["n_cells"], table["N_Detections"])


@pytest.mark.parametrize(
    ("name", "n_genes", "kind"),
    [
        ("stats_aggregate_data_one", 1, "delete"),
        ("stats_aggregate_data_group_delete", 2, "delete"),
        ("formula_stats_aggregate_data_group", 2, "overexpress"),
    ],
)
def test_shifts_of_each_cell(upstream: Tables, name: str, n_genes: int, kind: str) -> None:
    table = upstream.table(name)
    genes = upstream.expected["group_genes"][:n_genes].tolist()
    raw = scfm.get.perturb_df(upstream.perturbed(genes=[tuple(genes)], kind=kind), table="raw")
    np.testing.assert_allclose(np.sort(1 - raw["effect"]), np.sort(table["Cosine_sim"]), atol=TOLERANCE)


class Synthetic:
    """Shifts that no model made: many genes, ties, genes that the null lacks."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "fixtures" / "geneformer" / "v2"
        if not (self.folder / "stats_synth.npz").exists():
            pytest.skip("these values are not committed")
        with np.load(self.folder / "stats_synth.npz") as file:
            self.arrays = dict(file)

    def shifts(self, name: str) -> Shifts:
        tokens, values = self.arrays[f"{name}_token"], self.arrays[f"{name}_shift"]
        return shifts_from(np.arange(len(tokens)), tokens, values if values.ndim == 1 else values[:, 1])

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / f"stats_synth_{name}.csv", index_col=0)


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_components_in_either_order(reference: Path, ordered: bool) -> None:
    """Upstream takes the first component for the one with an impact; by default, the one with larger effects is."""
    synthetic, name = Synthetic(reference), f"mixture_{'ordered' if ordered else 'unordered'}"
    shifts = effects(synthetic.shifts(name))
    found = mixed(shifts, means_of(shifts))
    close(synthetic.table(name), shifts, found)
    ours = mixed(shifts, means_of(shifts), upstream=False)["Impact_component"]
    assert (ours.sum() == found["Impact_component"].sum()) == ordered


def test_many_genes(reference: Path) -> None:
    synthetic = Synthetic(reference)
    shifts = synthetic.shifts("goal")
    pvals = against_others(shifts, upstream=True)[1]
    found = {"Goal_end_vs_random_pval": pvals, "Goal_end_FDR": false_discovery_control(pvals)}
    close(synthetic.table("goal_state_shift"), shifts, found)
    test, null = synthetic.shifts("test"), synthetic.shifts("null")
    close(synthetic.table("vs_null"), test, {"Test_vs_null_pval": against_null(test, null, by_gene=True)[1]})
