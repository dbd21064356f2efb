"""Equal to the official code of Geneformer where it perturbs genes, on values that it wrote for small random checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import false_discovery_control

import scfm
from scfm._types import TokenBlock
from scfm.batch import plan_batches
from scfm.metrics.shift_tests import against_null, against_others, mixture, summary
from scfm.metrics.shifts import Shifts
from scfm.model.arguments import Arguments
from scfm.tasks import Perturb, Perturbations

if TYPE_CHECKING:
    from pathlib import Path

    from scfm.tasks import Kind

TOLERANCE = 2e-6
"""Largest absolute difference of a cosine, from the README of the values."""


class Case:
    """A version of Geneformer, its cells, and upstream's values."""

    def __init__(self, root: Path, version: str) -> None:
        folder = root / "fixtures" / "geneformer" / version
        if not (folder / "expected_isp.npz").exists():
            pytest.skip("these values are not committed")
        with np.load(folder / "expected_isp.npz", allow_pickle=False) as file:
            self.expected = dict(file)
        self.version = version
        self.model: Any = scfm.model.load(folder, dictionaries=root / "dictionaries" / version.upper())
        self.adata = ad.read_h5ad(folder / "isp_input.h5ad")
        states, cells = self.expected["state_names"], self.expected["isp_cell_type"]
        self.start = np.flatnonzero(cells == states[0])
        self.alternative = np.flatnonzero(cells == states[2])

    def run(self, perturbations: Perturbations, cells: np.ndarray, *, layer: int = -1, goal: bool = False) -> Any:
        """Rows, tokens (or numbers of groups) and effects."""
        arguments = Arguments(hidden_layer=layer, compat="upstream", device="cpu", dtype="float32")
        targets = self.expected["state_embs"] if goal else None
        with self.model.count_session(self.adata, arguments) as session:
            task = Perturb(session.model, session.options, perturbations, targets)
            session.run(task, [(int(cell), int(cell) + 1) for cell in cells])
        return task.effects.table()

    def close(self, found: Any, name: str, prefix: str = "upstream") -> None:
        """Compare with the values of a case."""
        rows, tags, effects = found
        cells, shift = self.expected[f"{prefix}_{name}_cell"], self.expected[f"{prefix}_{name}_shift"]
        tokens = self.expected.get(f"{prefix}_{name}_token", np.zeros(len(cells), int))
        order = np.lexsort((tokens, cells))
        np.testing.assert_array_equal(rows, cells[order])
        np.testing.assert_array_equal(tags, tokens[order])
        wanted = shift[order] if shift.ndim == 2 else 1 - shift[order, None]
        np.testing.assert_allclose(effects, wanted, atol=TOLERANCE)


@pytest.fixture(scope="module", params=["v1", "v2"])
def case(reference: Path, request: pytest.FixtureRequest) -> Case:
    return Case(reference, request.param)


pytestmark = pytest.mark.usefixtures("one_thread")

EACH: list[tuple[str, Kind, int, bool]] = [
    ("delall_nogoal_lm1", "delete", -1, False),
    ("delall_nogoal_l0", "delete", 0, False),
    ("delall_goal_lm1", "delete", -1, True),
    ("ovxall_nogoal_lm1", "overexpress", -1, False),
    ("ovxall_goal_lm1", "overexpress", -1, True),
]


@pytest.mark.parametrize(("name", "kind", "layer", "goal"), EACH, ids=[name for name, *_ in EACH])
def test_every_gene_by_itself(case: Case, name: str, kind: Kind, layer: int, goal: bool) -> None:
    case.close(case.run(Perturbations(kind), case.start, layer=layer, goal=goal), name)


def test_every_gene_of_other_cells(case: Case) -> None:
    case.close(case.run(Perturbations("delete"), case.alternative), "delall_nogoal_null_lm1")


@pytest.mark.parametrize("kind", ["delete", "overexpress"])
@pytest.mark.parametrize("goal", [False, True], ids=["nogoal", "goal"])
@pytest.mark.parametrize("n_genes", [1, 2], ids=["one", "grp"])
def test_genes_together(case: Case, kind: Kind, goal: bool, n_genes: int) -> None:
    group = tuple(case.expected["group_tokens"][:n_genes].tolist())
    name = f"{kind[:3].replace('ove', 'ovx')}{'grp' if n_genes == 2 else 'one'}_{'goal' if goal else 'nogoal'}_lm1"
    case.close(case.run(Perturbations(kind, (group,)), case.start, goal=goal), name)


@pytest.mark.parametrize(("kind", "prefix"), [("delete", "upstream"), ("overexpress", "formula")])
def test_every_gene_with_an_anchor(case: Case, kind: Kind, prefix: str) -> None:
    anchor = int(case.expected["anchor_token"])
    case.close(case.run(Perturbations(kind, anchor=anchor), case.start), f"anchor_{kind}_nogoal_lm1", prefix)


@pytest.mark.parametrize("goal", [False, True], ids=["nogoal", "goal"])
def test_cells_that_are_too_long(case: Case, goal: bool) -> None:
    """Tokens that the values give: such cells would make the files large."""
    offsets = case.expected["overflow_offsets"].astype(np.int64)
    tokens = case.expected["overflow_tokens"].astype(np.int32)
    group = tuple(case.expected["overflow_gene_tokens"].tolist())
    options = Arguments(hidden_layer=-1, compat="upstream").resolved(case.model)
    targets = case.expected["state_embs"] if goal else None
    task = Perturb(case.model, options, Perturbations("overexpress", (group,)), targets)
    compute = task.make_forward(
        case.model.networks(options.n_layers, [torch.device("cpu")], torch.float32)[0],
        torch.device("cpu"),
        torch.float32,
    )
    with torch.inference_mode():
        for block in task.edit(TokenBlock(0, tokens, offsets, np.diff(offsets))):
            for batch in plan_batches(block, 10_000):
                task.sink.write(batch, compute(batch))
    name = f"overflow_ovxgrp_{'goal' if goal else 'nogoal'}_lm1"
    crashed = f"upstream_{name}_shift" not in case.expected
    wanted = case.expected[f"{'formula' if crashed else 'upstream'}_{name}_shift"]
    np.testing.assert_allclose(task.effects.table()[2], wanted if goal else 1 - wanted[:, None], atol=TOLERANCE)


def test_effects_on_other_genes(case: Case) -> None:
    pairs = np.concatenate([case.expected["upstream_delall_genes_lm1_pairs"], np.zeros((0, 3), int)])
    cosines = dict(zip(map(tuple, pairs.tolist()), case.expected["upstream_delall_genes_lm1_pair_cos"], strict=True))
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    arguments = Arguments(hidden_layer=-1, compat="upstream", device="cpu", dtype="float32")
    n = 0
    for cell in case.start.tolist():
        with case.model.count_session(case.adata, arguments) as session:
            found.clear()
            session.run(
                Perturb(session.model, session.options, Perturbations("delete"), None, lambda *one: found.append(one)),
                [(cell, cell + 1)],
            )
        for tag, genes, effects in found:
            wanted = [cosines[cell, tag, gene] for gene in genes.tolist()]
            np.testing.assert_allclose(1 - effects, wanted, atol=TOLERANCE)
            n += len(genes)
    assert n == len(cosines)


class Table:
    """A table of upstream's statistics, by token."""

    def __init__(self, folder: Path, name: str) -> None:
        if not (folder / f"{name}.csv").exists():
            pytest.skip("these values are not committed")
        self.frame = pd.read_csv(folder / f"{name}.csv", index_col=0).set_index("Gene")

    def close(self, shifts: Shifts, found: dict[str, np.ndarray]) -> None:
        """Compare columns with values of all names."""
        at = pd.Index(shifts.names).get_indexer(self.frame.index)
        for name, values in found.items():
            np.testing.assert_allclose(values[at], self.frame[name], atol=1e-6, rtol=1e-6, err_msg=name)


def shifts_from(cells: np.ndarray, tokens: np.ndarray, values: np.ndarray) -> Shifts:
    names, genes = np.unique(tokens, return_inverse=True)
    return Shifts(np.asarray(cells, np.int64), genes, np.asarray(values, np.float64), pd.Index(names))


def spread(table: pd.DataFrame, n: int, column: str) -> np.ndarray:
    return table[column].reindex(range(n)).to_numpy()


def test_shift_to_the_goal(case: Case, reference: Path) -> None:
    table = Table(reference / "fixtures" / "geneformer" / case.version, "stats_goal_state_shift")
    name = "upstream_delall_goal_lm1"
    for state, mean, pval, fdr in [
        (1, "Shift_to_goal_end", "Goal_end_vs_random_pval", "Goal_end_FDR"),
        (2, "Shift_to_alt_end_HCC827", "Alt_end_vs_random_pval_HCC827", "Alt_end_FDR_HCC827"),
    ]:
        shifts = shifts_from(
            *(case.expected[f"{name}_{part}"] for part in ("cell", "token")), case.expected[f"{name}_shift"][:, state]
        )
        found, n = summary(shifts, None), len(shifts.names)
        pvals = against_others(shifts, upstream=True)[1]
        columns = {mean: spread(found, n, "effect"), "N_Detections": spread(found, n, "n_cells")}
        table.close(shifts, columns | {pval: pvals, fdr: false_discovery_control(pvals)})


def test_against_other_cells(case: Case, reference: Path) -> None:
    table = Table(reference / "fixtures" / "geneformer" / case.version, "stats_vs_null")
    shifts, null = (
        shifts_from(*(case.expected[f"upstream_delall_nogoal_{part}lm1_{name}"] for name in ("cell", "token", "shift")))
        for part in ("", "null_")
    )
    pvals = against_null(shifts, null, by_gene=True)[1]
    table.close(shifts, {"Test_vs_null_pval": pvals, "Test_vs_null_FDR": false_discovery_control(pvals)})


def test_mixture_of_effects(case: Case, reference: Path) -> None:
    table = Table(reference / "fixtures" / "geneformer" / case.version, "stats_mixture_model")
    cells, tokens, cosines = (
        case.expected[f"upstream_delall_nogoal_lm1_{name}"] for name in ("cell", "token", "shift")
    )
    shifts = shifts_from(cells, tokens, 1 - cosines.astype(np.float64))
    effect = spread(summary(shifts, None), len(shifts.names), "effect")
    impact, share = mixture(shifts, effect, upstream=True)
    table.close(
        shifts, {"Test_avg_shift": 1 - effect, "Impact_component": impact, "Impact_component_percent": 100 * share}
    )


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_components_in_either_order(reference: Path, ordered: bool) -> None:
    """Upstream takes the first component for the one with an impact; by default, the one with larger effects is."""
    folder = reference / "fixtures" / "geneformer" / "v2"
    name = f"mixture_{'ordered' if ordered else 'unordered'}"
    table = Table(folder, f"stats_synth_{name}")
    with np.load(folder / "stats_synth.npz") as file:
        tokens, cosines = file[f"{name}_token"], file[f"{name}_shift"]
    shifts = shifts_from(np.arange(len(tokens)), tokens, 1 - cosines)
    effect = spread(summary(shifts, None), len(shifts.names), "effect")
    impact, share = mixture(shifts, effect, upstream=True)
    table.close(shifts, {"Impact_component": impact, "Impact_component_percent": 100 * share})
    assert (mixture(shifts, effect, upstream=False)[0].sum() == impact.sum()) == ordered


def test_many_genes(reference: Path) -> None:
    folder = reference / "fixtures" / "geneformer" / "v2"
    goal, null = Table(folder, "stats_synth_goal_state_shift"), Table(folder, "stats_synth_vs_null")
    with np.load(folder / "stats_synth.npz") as file:
        synth = dict(file)
    shifts = shifts_from(np.arange(len(synth["goal_token"])), synth["goal_token"], synth["goal_shift"][:, 1])
    pvals = against_others(shifts, upstream=True)[1]
    goal.close(shifts, {"Goal_end_vs_random_pval": pvals, "Goal_end_FDR": false_discovery_control(pvals)})
    test, other = (
        shifts_from(np.arange(len(synth[f"{one}_token"])), synth[f"{one}_token"], synth[f"{one}_shift"])
        for one in ("test", "null")
    )
    null.close(test, {"Test_vs_null_pval": against_null(test, other, by_gene=True)[1]})


@pytest.mark.parametrize(("name", "kind"), [("delgrp", "delete"), ("ovxgrp", "overexpress")])
def test_effects_of_groups_on_other_genes(case: Case, name: str, kind: Kind) -> None:
    group = tuple(case.expected["group_tokens"].tolist())
    found: list[tuple[np.ndarray, np.ndarray]] = []
    arguments = Arguments(hidden_layer=-1, compat="upstream", device="cpu", dtype="float32")
    with case.model.count_session(case.adata, arguments) as session:
        task = Perturb(
            session.model,
            session.options,
            Perturbations(kind, (group,)),
            None,
            lambda _, genes, effects: found.append((genes, 1 - effects)),
        )
        session.run(task, [(int(cell), int(cell) + 1) for cell in case.start])
    genes, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
    wanted = [case.expected[f"upstream_{name}_genes_lm1_affected{part}"] for part in ("", "_cos")]
    order, theirs = np.lexsort((cosines, genes)), np.lexsort((wanted[1], wanted[0]))
    np.testing.assert_array_equal(genes[order], wanted[0][theirs])
    np.testing.assert_allclose(cosines[order], wanted[1][theirs], atol=TOLERANCE)
