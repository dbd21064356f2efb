"""Responses to drugs, on data whose signal is known."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge

import scfm
from scfm.datasets._drug_response import TCGA_TYPES
from scfm.datasets._drug_response import drug_response as read_screen
from scfm.tl._drug_response import FEWEST_LINES, drug_response

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

N_LINES, N_DRUGS, N_FEATURES = 300, 12, 6
CEILING = np.sqrt(1 / 1.25)
"""Correlation within drugs of a perfect prediction, with signal of variance 1 and noise of 0.25."""


def screen(points: NDArray[np.floating[Any]], n_drugs: int = N_DRUGS, seed: int = 0) -> pd.DataFrame:
    """Responses that are linear in standardised points, with noise and a mean for each drug; a third is missing."""
    rng = np.random.default_rng(seed)
    z = (points - points.mean(axis=0)) / points.std(axis=0)
    signal = z @ rng.normal(size=(z.shape[1], n_drugs))
    signal = (signal - signal.mean(axis=0)) / signal.std(axis=0)
    values = 3 * rng.normal(size=n_drugs) + signal + 0.5 * rng.normal(size=signal.shape)
    values[rng.random(values.shape) < 1 / 3] = np.nan
    return pd.DataFrame(values, columns=[f"drug {i}" for i in range(n_drugs)])


@pytest.fixture
def adata() -> ad.AnnData:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(N_LINES, N_FEATURES)) * np.arange(1, N_FEATURES + 1) + 5
    obs = pd.DataFrame(
        {"tcga": pd.Categorical(rng.choice(["LUAD", "OV", "SKCM"], N_LINES), ["SKCM", "LUAD", "OV", "none"])},
        index=[f"line-{i}" for i in range(N_LINES)],
    )
    obs.loc[obs.index[:9], "tcga"] = np.nan
    responses = screen(points).set_axis(obs.index)
    return ad.AnnData(obs=obs, obsm={"X_points": points.astype(np.float32), "ic50": responses})


def shuffled(responses: pd.DataFrame) -> pd.DataFrame:
    """Each drug's values among its measured lines in another order."""
    rng, out = np.random.default_rng(2), responses.copy()
    for drug in out:
        measured = out[drug].notna()
        out.loc[measured, drug] = rng.permutation(out.loc[measured, drug])
    return out


@pytest.mark.parametrize("split", ["pair", "line"])
def test_ridge_comes_close_to_the_ceiling(adata: ad.AnnData, split: Any) -> None:
    assert drug_response(adata, "X_points", split=split, test_share=0.2) is None
    found = adata.uns["drug_response"]
    assert CEILING - 0.04 < found["pearson_within_drugs"] < CEILING + 0.04
    assert found["pearson_drug_means"] < found["pearson"] < 1
    assert found["per_drug"]["pearson"].min() > 0.7


def test_boosting_finds_the_signal(adata: ad.AnnData) -> None:
    drug_response(adata, "X_points", regressor="boosting", test_share=0.2)
    found = adata.uns["drug_response"]
    assert CEILING / 2 < found["pearson_within_drugs"] < CEILING
    assert found["pearson_drug_means"] < found["pearson"]


@pytest.mark.parametrize("regressor", ["ridge", "boosting"])
def test_nothing_is_found_where_nothing_is(adata: ad.AnnData, regressor: str) -> None:
    adata.obsm["ic50"] = shuffled(adata.obsm["ic50"])
    drug_response(adata, "X_points", regressor=regressor, test_share=0.2)
    found = adata.uns["drug_response"]
    assert abs(found["pearson_within_drugs"]) < 0.12
    assert found["pearson"] == pytest.approx(found["pearson_drug_means"], abs=0.02)
    assert found["pearson"] > 0.8  # what drugs alone explain
    values = adata.obsm["ic50"].to_numpy()
    measured = ~np.isnan(values)
    values[measured] = np.random.default_rng(3).permutation(values[measured])
    adata.obsm["ic50"] = pd.DataFrame(values, adata.obs_names, adata.obsm["ic50"].columns)
    drug_response(adata, "X_points", regressor=regressor, test_share=0.2)
    assert abs(adata.uns["drug_response"]["pearson"]) < 0.12


def test_values(adata: ad.AnnData) -> None:
    """Predictions and scores, computed one by one."""
    drug_response(adata, "X_points", regressor=Ridge(alpha=3.0), test_share=0.2)
    responses, predictions = adata.obsm["ic50"], adata.obsm["drug_response"]
    points = adata.obsm["X_points"].astype(np.float64)
    known = adata.obs["tcga"].notna().to_numpy()
    truth, predicted, mean = [], [], []
    for name, drug in responses.items():
        held_out = predictions[name].notna().to_numpy()
        learn = drug.notna().to_numpy() & known & ~held_out
        z = (points - points[learn].mean(axis=0)) / points[learn].std(axis=0)
        x, y = z[learn], drug[learn] - drug[learn].mean()
        weights = np.linalg.solve(x.T @ x + 3 * np.eye(N_FEATURES), x.T @ y)
        expected = z[held_out] @ weights + drug[learn].mean()
        np.testing.assert_allclose(predictions[name][held_out], expected, rtol=1e-8)
        row = adata.uns["drug_response"]["per_drug"].loc[name]
        assert (row["n_train"], row["n_test"]) == (learn.sum(), held_out.sum())
        assert row["pearson"] == pytest.approx(np.corrcoef(expected, drug[held_out])[0, 1])
        truth += drug[held_out].tolist()
        predicted += expected.tolist()
        mean += [drug[learn].mean()] * held_out.sum()
    found, sides = adata.uns["drug_response"], np.array([truth, predicted, mean])
    assert found["pearson"] == pytest.approx(np.corrcoef(sides[0], sides[1])[0, 1])
    assert found["pearson_drug_means"] == pytest.approx(np.corrcoef(sides[0], sides[2])[0, 1])
    assert found["pearson_within_drugs"] == pytest.approx(np.corrcoef(sides[:2] - sides[2])[0, 1])


def held_out_upstream(adata: ad.AnnData, types: list[str], ratio: float) -> set[tuple[str, str]]:
    """Split measurements type by type, as DeepCDR does."""
    pairs = [
        (line, drug, adata.obs["tcga"].at[line])
        for drug, column in adata.obsm["ic50"].items()
        for line in column.index[column.notna()]
    ]
    random.seed(0)
    out: set[tuple[str, str]] = set()
    for name in types:
        members = [(line, drug) for line, drug, group in pairs if group == name]
        out |= set(members) - set(random.sample(members, int(ratio * len(members))))
    return out


def held_out(adata: ad.AnnData) -> set[tuple[str, str]]:
    return {
        (line, drug) for drug, column in adata.obsm["drug_response"].items() for line in column.index[column.notna()]
    }


def test_the_split_is_upstreams(adata: ad.AnnData) -> None:
    drug_response(adata, "X_points", regressor=DummyRegressor())
    expected = held_out_upstream(adata, ["SKCM", "LUAD", "OV"], 0.95)
    assert held_out(adata) == expected
    assert adata.uns["drug_response"]["params"]["n_test"] == len(expected)
    drug_response(adata, "X_points", regressor=DummyRegressor(), seed=1)
    assert held_out(adata) != expected


def test_the_split_of_the_published_screen_is_upstreams(shared: Path) -> None:
    data = shared / "reference" / "sccello_data"
    lines = pd.read_csv(data / "GDSC_IC50.csv", index_col=0, nrows=0).columns
    expression = pd.DataFrame({"TP53": np.arange(len(lines))}, index=lines)
    adata = read_screen(expression, data / "GDSC_IC50.csv", data / "Cell_lines_annotations_20181226.txt")
    adata.obsm["X_points"] = adata.X
    drug_response(adata, "X_points", regressor=DummyRegressor())
    assert held_out(adata) == held_out_upstream(adata, TCGA_TYPES, 0.95)


def test_lines_that_were_never_seen(adata: ad.AnnData) -> None:
    drug_response(adata, "X_points", split="line", test_share=0.1)
    predictions, responses = adata.obsm["drug_response"], adata.obsm["ic50"]
    lines = predictions.notna().any(axis=1)
    pd.testing.assert_frame_equal(predictions[lines].notna(), responses[lines].notna())
    groups = adata.obs["tcga"]
    assert not lines[groups.isna()].any()
    for name in ("SKCM", "LUAD", "OV"):
        n = (groups == name).sum()
        assert lines[groups == name].sum() == n - int(0.9 * n)


def test_without_groups(adata: ad.AnnData) -> None:
    drug_response(adata, "X_points", groupby=None, test_share=0.25)
    params = adata.uns["drug_response"]["params"]
    n = int(adata.obsm["ic50"].notna().sum().sum())
    assert (params["n_lines"], params["n_train"], params["n_test"]) == (N_LINES, int(0.75 * n), n - int(0.75 * n))
    assert params["groupby"] == ""


def test_drugs_with_few_lines(adata: ad.AnnData) -> None:
    responses = adata.obsm["ic50"]
    responses["few"] = np.nan
    responses.iloc[20 : 20 + FEWEST_LINES, -1] = np.arange(FEWEST_LINES)
    responses["none"] = np.nan
    drug_response(adata, "X_points", groupby=None, test_share=0.2, seed=4)
    few = adata.obsm["drug_response"]["few"]
    seen = responses["few"].notna() & few.isna()
    assert 0 < seen.sum() < FEWEST_LINES
    assert few.dropna().unique().tolist() == [responses["few"][seen].mean()]
    table = adata.uns["drug_response"]["per_drug"]
    assert np.isnan(table.loc["few", "pearson"])
    assert table.loc["none", ["n_train", "n_test"]].tolist() == [0, 0]


def test_a_drug_that_is_only_asked_for() -> None:
    lines = [f"line-{i}" for i in range(40)]
    responses = pd.DataFrame({"a": np.arange(40.0), "b": np.nan}, index=lines)
    groups = ["common"] * 39 + ["single"]  # a group of one line is held out
    responses.loc["line-39"] = [np.nan, 7.0]
    adata = ad.AnnData(obs=pd.DataFrame({"tcga": groups}, index=lines))
    adata.obsm["X"], adata.obsm["ic50"] = np.ones((40, 2)), responses
    drug_response(adata, "X", split="line")
    predictions = adata.obsm["drug_response"]
    seen = predictions["a"].isna() & responses["a"].notna()
    assert predictions["b"].dropna().to_dict() == {"line-39": pytest.approx(responses["a"][seen].mean())}


def test_result_fields(adata: ad.AnnData, tmp_path: Path) -> None:
    before = adata.copy()
    changed = drug_response(adata, "X_points", key_added="ridge", copy=True)
    assert changed is not None
    assert list(adata.uns) == []
    assert set(changed.obsm) - set(adata.obsm) == {"ridge"}
    pd.testing.assert_frame_equal(changed.obs, before.obs)
    pd.testing.assert_frame_equal(changed.obsm["ic50"], before.obsm["ic50"])
    changed.write_h5ad(tmp_path / "screen.h5ad")
    back = ad.read_h5ad(tmp_path / "screen.h5ad")
    pd.testing.assert_frame_equal(back.obsm["ridge"], changed.obsm["ridge"])
    pd.testing.assert_frame_equal(back.uns["ridge"]["per_drug"], changed.uns["ridge"]["per_drug"])
    assert back.uns["ridge"]["pearson"] == changed.uns["ridge"]["pearson"]
    assert back.uns["ridge"]["params"] == changed.uns["ridge"]["params"]
    again = drug_response(adata, "X_points", key_added="ridge", copy=True)
    assert again is not None
    pd.testing.assert_frame_equal(again.obsm["ridge"], changed.obsm["ridge"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"use_rep": "X_no"}, KeyError, r"'X_no' is not in obsm; found \['X_points', 'ic50'\]"),
        ({"ic50_key": "no"}, KeyError, "'no' is not in obsm"),
        ({"groupby": "no"}, KeyError, r"'no' is not in obs; found \['tcga'\]"),
        ({"ic50_key": "X_points"}, TypeError, "must be a DataFrame, lines x drugs; got ndarray"),
        ({"regressor": "lasso"}, ValueError, "regressor='lasso' is not known"),
        ({"regressor": 3}, TypeError, "got int"),
        ({"split": "drug"}, ValueError, "split='drug' is not known"),
        ({"test_share": 1}, ValueError, "test_share=1"),
        ({"key_added": "a/b"}, ValueError, "cannot be stored"),
    ],
)
def test_wrong_options(adata: ad.AnnData, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        drug_response(adata, **{"use_rep": "X_points"} | options)
    assert not adata.uns


def test_wrong_values(adata: ad.AnnData) -> None:
    adata.obsm["X_points"][[0, 20]] = np.nan  # the first has no group
    with pytest.raises(ValueError, match="1 lines with NaN, the first is row 20"):
        drug_response(adata, "X_points")
    with pytest.raises(ValueError, match="which leaves nothing on one side"):
        drug_response(adata[:9].copy(), "X_points")
    adata.obsm["ic50"].iloc[4, 2] = -np.inf
    with pytest.raises(ValueError, match="1 responses are infinite"):
        drug_response(adata, "X_points")


@pytest.mark.filterwarnings("ignore:.*integers:UserWarning")  # expression is logarithmic, as upstream's
def test_from_an_expression_table_to_responses(shared: Path) -> None:
    """Mixtures of six lines, embedded by a model, with responses that are linear in the embedding."""
    table = pd.read_csv(shared / "reference/fixtures/sccello/drug_expression.csv", index_col=0)
    weights = np.random.default_rng(0).dirichlet(np.full(len(table), 0.3), size=200)
    lines = [f"line-{i}" for i in range(len(weights))]
    expression = pd.DataFrame(weights @ table.to_numpy(), index=lines, columns=table.columns)
    annotations = pd.DataFrame({"depMapID": lines, "tcga_code": ["LUAD", "OV"] * 100})
    unknown = pd.DataFrame(0.0, index=["drug"], columns=lines)
    adata = read_screen(expression, unknown, annotations)
    scfm.tl.embed(adata, model="scfm-mini")
    axes = np.linalg.svd(adata.obsm["X_scfm_mini"] - adata.obsm["X_scfm_mini"].mean(axis=0), full_matrices=False)[0]
    adata.obsm["ic50"] = screen(axes[:, :4]).set_axis(lines)
    drug_response(adata, "X_scfm_mini", split="line", test_share=0.2)
    assert adata.uns["drug_response"]["pearson_within_drugs"] > CEILING - 0.1
    adata.obsm["ic50"] = shuffled(adata.obsm["ic50"])
    drug_response(adata, "X_scfm_mini", split="line", test_share=0.2)
    assert abs(adata.uns["drug_response"]["pearson_within_drugs"]) < 0.15


@pytest.mark.parametrize("key", ["ic50", "X_points", "taken"])
def test_nothing_that_is_read_is_overwritten(key: str) -> None:
    adata = scfm.datasets.synthetic(30, 50, genes_per_cell=10)
    adata.obsm["X_points"] = np.random.default_rng(0).normal(size=(30, 3))
    adata.obsm["ic50"] = pd.DataFrame({"a": adata.obsm["X_points"][:, 0]}, adata.obs_names)
    adata.uns["taken"] = {"params": {"model": "x"}}
    with pytest.raises(ValueError, match=f"would overwrite .*'{key}'"):
        scfm.tl.drug_response(adata, "X_points", groupby=None, key_added=key)
    assert sorted(adata.obsm) == ["X_points", "ic50"]
