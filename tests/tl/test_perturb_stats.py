from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control

import scfm
from scfm.metrics.shift_tests import against_random
from scfm.model.arguments import Arguments
from scfm.tasks import Perturb, Perturbations

if TYPE_CHECKING:
    from anndata import AnnData

STATES = {"states_key": "bulk_labels", "start": "CD19+ B", "goal": "CD56+ NK"}


@pytest.fixture(scope="module")
def model() -> Any:
    return scfm.model.load("scfm-mini")


@pytest.fixture(scope="module")
def screened(model: Any) -> AnnData:
    """A few cells of two states with some of their genes."""
    adata = scfm.datasets.pbmc68k()
    labels = adata.obs["bulk_labels"].astype(str)
    rows = np.concatenate([np.flatnonzero(labels == name)[:6] for name in ("CD19+ B", "CD56+ NK")])
    adata = adata[np.sort(rows)].copy()[:, ::25].copy()
    scfm.tl.perturb(adata, model, random_states=30, gene_effects=True, device="cpu", **STATES)
    return adata


def test_shifts_towards_goals_under_permuted_labels(model: Any, screened: AnnData) -> None:
    found = screened.uns["perturb"]["random_shifts"]
    adata = screened.copy()
    scfm.tl.embed(adata, model, device="cpu")
    vectors = adata.obsm["X_scfm_mini"].astype(np.float64)  # the only cells are those of start and goal
    rng = np.random.default_rng(0)
    goals = [vectors[rng.permutation(adata.n_obs)[:6]].mean(axis=0) for _ in range(found.shape[1])]
    with model.count_session(adata, Arguments(device="cpu")) as session:
        task = Perturb(session.model, session.options, Perturbations("delete"), np.stack(goals))
        rows = np.flatnonzero(adata.obs["bulk_labels"] == "CD19+ B")
        session.run(task, [(int(row), int(row) + 1) for row in rows])
        _, tags, shifts = task.effects.table()
        tokens = session.tokens_for(adata.var_names)
    means = pd.DataFrame(shifts).groupby(adata.var_names[[tokens.tolist().index(tag) for tag in tags]]).mean()
    np.testing.assert_allclose(found, means.loc[found.index], atol=1e-6)
    assert set(found.index) == set(scfm.get.perturb_df(adata, table="raw")["names"])


def test_a_goal_is_compared_with_random_ones(screened: AnnData) -> None:
    adata = screened.copy()
    scfm.tl.perturb_stats(adata, test="random_states")
    table = scfm.get.perturb_df(adata).set_index("names")
    random = adata.uns["perturb"]["random_shifts"].loc[table.index].astype(np.float64)
    z = (table["effect"] - random.mean(axis=1)) / (random.std(axis=1) * np.sqrt(1 + 1 / 30))
    np.testing.assert_allclose(table["statistic"], z, rtol=1e-10)
    assert table["pvals_adj"].is_monotonic_increasing


@pytest.mark.parametrize("planted", [False, True])
def test_states_that_do_not_differ(planted: bool) -> None:
    """Cells with labels at random: of 200 screens at a false discovery rate of 5 %, 10 may find something by chance."""
    n_cells, n_goal, n_genes, n_features = 60, 25, 50, 16
    found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        cells, moves = rng.normal(1, 1, (n_cells, n_features)), rng.normal(0, 0.01, (n_genes, n_features))
        if planted:  # the goal lies where the first gene moves the cells
            cells[:n_goal] += 300 * moves[0]
        goals = np.stack(
            [cells[:n_goal].mean(axis=0)] + [rng.permutation(cells)[:n_goal].mean(axis=0) for _ in range(100)]
        )
        shifts = moves @ (goals / np.linalg.norm(goals, axis=1, keepdims=True)).T
        pvals = against_random(shifts[:, 0], shifts[:, 1:])[1]
        found += (false_discovery_control(pvals) < 0.05).any()
    assert found == 200 if planted else found <= 16


def test_effects_on_other_genes_as_a_table(screened: AnnData) -> None:
    table = scfm.get.perturb_df(screened, table="effects")
    assert table.columns.tolist() == ["names", "affected", "effect", "sd", "n_cells"]
    assert len(table) == screened.varp["perturb_n"].nnz
    one = table.iloc[7]
    at = screened.var_names.get_indexer([one["names"], one["affected"]])
    stored = [screened.varp[f"perturb{ending}"][at[0], at[1]] for ending in ("", "_sd", "_n")]
    assert [one["effect"], one["sd"], one["n_cells"]] == stored
    own = scfm.get.perturb_df(screened, table="effects", gene=one["names"])
    assert own["effect"].is_monotonic_decreasing
    assert len(own) == (table["names"] == one["names"]).sum()
    adata = screened.copy()
    scfm.tl.perturb_stats(adata, test="mixture", gene=one["names"])
    mixed = scfm.get.perturb_df(adata)
    assert mixed["names"].tolist() == own["affected"].tolist()
    assert mixed["impact"].is_monotonic_decreasing  # the largest effects are those with an impact


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"test": "random_states", "donors_key": "bulk_labels"}, ValueError, "does not go with donors_key="),
        ({"test": "random_states", "state": "start"}, ValueError, "does not go with state='start'"),
        ({"test": "null"}, ValueError, "either null_key="),
        ({"gene": "CD74"}, ValueError, "takes test='mixture', not test='paired'"),
        ({"test": "mixture", "gene": "CD74", "groupby": "bulk_labels"}, ValueError, "not groupby="),
        ({"test": "mixture", "gene": "nothing"}, KeyError, "was not perturbed"),
    ],
)
def test_what_is_refused(screened: AnnData, arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        scfm.tl.perturb_stats(screened, **arguments)
    assert "stats" not in screened.uns["perturb"]


@pytest.mark.filterwarnings("ignore:1 of 3 perturbations change none:UserWarning")
@pytest.mark.parametrize("test", ["paired", "ranksum"])
def test_groups_without_perturbed_cells(test: Any, model: Any) -> None:
    adata = scfm.datasets.pbmc68k()[:30].copy()
    scfm.tl.perturb(adata, model, genes=["CD74", "HLA-DRA", "B2M"], n_cells=4, device="cpu")
    scfm.tl.perturb_stats(adata, test=test, groupby="bulk_labels")
    done = adata.obs["bulk_labels"][adata.obs["perturb_n"] > 0]
    assert set(scfm.get.perturb_df(adata)["group"]) == set(done)
    others = adata[adata.obs["perturb_n"] == 0].copy()
    with pytest.raises(ValueError, match="holds no effect on these cells"):
        scfm.tl.perturb_stats(others, test=test)


def test_what_a_screen_has_to_keep(model: Any) -> None:
    adata = scfm.datasets.pbmc68k()
    with pytest.raises(ValueError, match="random_states= takes states"):
        scfm.tl.perturb(adata, model, random_states=10)
    adata = adata[:4].copy()
    scfm.tl.perturb(adata, model, genes=["CD74"], device="cpu")
    with pytest.raises(KeyError, match="random_states=200"):
        scfm.tl.perturb_stats(adata, test="random_states")
    with pytest.raises(KeyError, match="gene_effects=True"):
        scfm.get.perturb_df(adata, table="effects")
    with pytest.raises(KeyError, match="is not in the table"):
        scfm.get.perturb_df(adata, table="raw", gene="NKG7")
