from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial.distance import cosine

import scfm
from tests.rounding import close

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

N_CELLS = 12


@pytest.fixture(scope="module")
def model() -> Any:
    return scfm.model.load("scfm-mini")


@pytest.fixture
def adata() -> AnnData:
    """Some cells with some of their genes."""
    whole = scfm.datasets.pbmc68k()
    labels = whole.obs["bulk_labels"].astype(str)
    picked = np.flatnonzero(labels.isin(["CD19+ B", "CD56+ NK", "CD34+"]))[:: 400 // N_CELLS // 3]
    return whole[picked[:N_CELLS]].copy()[:, ::25].copy()


def ranked(model: Any, adata: AnnData) -> list[np.ndarray]:
    """Tokens of the genes of each cell."""
    with model.count_session(adata, scfm.model.arguments.Arguments(device="cpu")) as session:
        return [
            one for block in session.encoded([(0, adata.n_obs)]) for one in np.split(block.tokens, block.offsets[1:-1])
        ]


def states_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    """State of each gene of a sequence, by a pass of its own."""
    import torch

    network = model.networks(model.n_layers, [torch.device("cpu")], torch.float32)[0]
    with torch.inference_mode():
        return network(torch.from_numpy(tokens.astype(np.int64)), [len(tokens)]).numpy()


def context(model: Any, before: np.ndarray, after: np.ndarray, changed: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Means over the genes that both have and that were not changed, the slow and obvious way."""
    old, new = (
        dict(zip(before, states_of(model, before), strict=True)),
        dict(zip(after, states_of(model, after), strict=True)),
    )
    shared = [gene for gene in before if gene in new and gene not in changed]
    return np.mean([old[gene] for gene in shared], axis=0), np.mean([new[gene] for gene in shared], axis=0)


def changed_by_hand(genes: np.ndarray, gene: int, kind: str) -> np.ndarray:
    rest, at = [one for one in genes if one != gene], list(genes).index(gene)
    quarter = int(np.ceil(len(genes) / 4))
    place = {
        "delete": None,
        "overexpress": 0,
        "inhibit": min(at + quarter, len(rest)),
        "activate": max(at - quarter, 0),
    }[kind]
    return np.array(rest if place is None else [*rest[:place], gene, *rest[place:]])


@pytest.mark.parametrize("kind", ["delete", "overexpress", "inhibit", "activate"])
def test_every_gene_of_every_cell(model: Any, adata: AnnData, kind: Any) -> None:
    scfm.tl.perturb(adata, model, kind=kind, device="cpu")
    found = adata.layers["perturb"]
    token_of = scfm.genes.align(adata.var, model.vocabulary).tokens
    n = 0
    for row, genes in enumerate(ranked(model, adata)[:4]):
        skipped = genes[:1] if kind == "overexpress" else []
        columns = [column for column, token in enumerate(token_of) if token in genes and token not in skipped]
        assert found[row].indices.tolist() == columns
        assert adata.obs["perturb_n"].iloc[row] == len(columns)
        for column in columns:
            gene = token_of[column]
            old, new = context(model, genes, changed_by_hand(genes, gene, kind), [gene])
            assert found[row, column] == pytest.approx(cosine(new, old), abs=2e-6)
            n += 1
    assert n > 20


def test_towards_states(model: Any, adata: AnnData) -> None:
    scfm.tl.embed(adata, model, device="cpu")
    states = {"states_key": "bulk_labels", "start": "CD19+ B", "goal": "CD56+ NK", "alternatives": ["CD34+"]}
    scfm.tl.perturb(adata, model, device="cpu", **states)
    wanted = {
        name: adata.obsm["X_scfm_mini"][adata.obs["bulk_labels"] == name].mean(axis=0)
        for name in ("CD19+ B", "CD56+ NK", "CD34+")
    }
    stored = adata.uns["perturb"]["states"]
    for name, vector in wanted.items():
        close(stored.loc[name], vector)
    start = np.flatnonzero(adata.obs["bulk_labels"] == "CD19+ B")
    goal = adata.layers["perturb_goal"]
    assert set(np.flatnonzero(np.diff(goal.indptr))) == set(start)
    token_of = scfm.genes.align(adata.var, model.vocabulary).tokens
    row = start[0]
    genes = ranked(model, adata)[row]
    for column in goal[row].indices[:5]:
        old, new = context(model, genes, changed_by_hand(genes, token_of[column], "delete"), [token_of[column]])
        for field, name in (
            ("perturb_start", "CD19+ B"),
            ("perturb_goal", "CD56+ NK"),
            ("perturb_alternative_1", "CD34+"),
        ):
            shift = cosine(old, wanted[name]) - cosine(new, wanted[name])
            assert adata.layers[field][row, column] == pytest.approx(shift, abs=2e-6)


def test_groups_anchors_and_genes_that_are_not_there(model: Any, adata: AnnData) -> None:
    names = adata.var_names[np.asarray(adata.X.getnnz(axis=0)).argsort()[::-1][:3]].tolist()
    first, second, third = names
    scfm.tl.perturb(adata, model, genes=[(first, second), third], key_added="pairs", device="cpu")
    assert adata.obsm["pairs"].columns.tolist() == [f"{first}+{second}"]
    both = (adata[:, [first, second]].X.toarray() > 0).all(axis=1)
    np.testing.assert_array_equal(adata.obsm["pairs"].notna().to_numpy()[:, 0], both)
    np.testing.assert_array_equal(adata.layers["pairs"].getnnz(axis=0) > 0, adata.var_names == third)
    scfm.tl.perturb(adata, model, genes=[second], anchor=first, key_added="anchored", device="cpu")
    np.testing.assert_array_equal(adata.obsm["anchored"][second], adata.obsm["pairs"][f"{first}+{second}"])
    absent = next(name for name in model.vocabulary.symbols if name not in adata.var_names)
    scfm.tl.perturb(adata, model, genes={"on": [absent, first]}, kind="overexpress", key_added="on", device="cpu")
    assert adata.obsm["on"]["on"].notna().all()
    assert adata.uns["on"]["params"]["groups"] == {"on": [absent, first]}


@pytest.mark.parametrize("dry_run", [False, True])
def test_genes_that_change_nothing_are_told_before_the_work(
    dry_run: bool, model: Any, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = adata.var_names[int(np.asarray(adata.X.getnnz(axis=0)).argmax())]
    absent, unexpressed = (
        next(name for name in model.vocabulary.symbols if name not in adata.var_names),
        adata.var_names[-1] if adata.var_names[-1] != first else adata.var_names[-2],
    )
    adata.X = adata.X.toarray() * (adata.var_names != unexpressed)
    genes = [first, absent, unexpressed, (first, absent)]
    names = rf"{absent}, {unexpressed}, {first}\+{absent}"
    with pytest.warns(
        UserWarning, match=rf"3 of 4 perturbations change none of the 12 cells.*: {names}\. Their effects"
    ):
        scfm.tl.perturb(adata, model, genes=genes, dry_run=dry_run, device="cpu")
    if not dry_run:
        assert adata.obsm["perturb"].columns.tolist() == [absent, f"{first}+{absent}"]
        assert adata.obsm["perturb"].isna().all(axis=None)
        assert set(adata.layers["perturb"].indices) == {adata.var_names.get_loc(first)}
    monkeypatch.setattr("scfm.model.session.Session.networks", lambda *_: pytest.fail("nothing is computed"))
    with pytest.raises(ValueError, match="None of the 12 cells expresses"):
        scfm.tl.perturb(adata, model, genes=genes[1:], device="cpu")


def test_statistics_and_files(model: Any, adata: AnnData, tmp_path: Path) -> None:
    adata.obs["donor"] = np.arange(adata.n_obs) % 5
    scfm.tl.perturb(adata, model, device="cpu")
    with pytest.warns(UserWarning, match="cells of one donor are not independent"):
        scfm.tl.perturb_stats(adata)
    by_cell = scfm.get.perturb_df(adata)
    scfm.tl.perturb_stats(adata, donors_key="donor")
    by_donor = scfm.get.perturb_df(adata)
    assert by_donor["n_donors"].max() == 5
    assert by_cell.set_index("names")["effect"].to_dict() == by_donor.set_index("names")["effect"].to_dict()
    raw = scfm.get.perturb_df(adata, table="raw")
    means = raw.groupby("names")["effect"].mean()
    np.testing.assert_allclose(by_cell.set_index("names")["effect"], means[by_cell["names"]], rtol=1e-6)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(scfm.get.perturb_df(again), by_donor, check_dtype=False, check_categorical=False)
    assert again.uns["perturb"]["params"]["kind"] == "delete"


def test_a_run_that_is_only_counted(model: Any, adata: AnnData) -> None:
    before = set(adata.layers)
    found = scfm.tl.perturb(adata, model, dry_run=True, device="cpu")
    assert set(adata.layers) == before
    genes = [len(one) for one in ranked(model, adata)]
    assert found["sequences"] == sum(genes)
    assert found["tokens"] == sum(n * n for n in genes)
    assert found["seconds"] > 0


@pytest.mark.parametrize("kind", ["delete", "overexpress", "inhibit", "activate"])
@pytest.mark.filterwarnings("ignore:.*hold no gene of the model")
def test_cells_with_nothing_to_compare(model: Any, adata: AnnData, kind: Any) -> None:
    """Without genes, or with none but the one that is changed."""
    gene = "CD74"
    adata = scfm.datasets.pbmc68k()[:3].copy()
    x = adata.X.toarray()
    x[0], x[1], x[2, adata.var_names.get_loc(gene)] = 0, 0, 2
    x[1, adata.var_names.get_loc(gene)] = 3
    adata.X = sparse.csr_matrix(x)
    scfm.tl.perturb(adata, model, genes=[gene], kind=kind, device="cpu")
    assert adata.obs["perturb_n"].tolist() == [0, 0, 1]
    assert adata.layers["perturb"].nnz == 1
    assert "n_cells_not_finite" not in adata.uns["perturb"]["params"]
    with pytest.raises(ValueError, match="None of the 1 cells expresses the genes"):
        scfm.tl.perturb(adata[:1].copy(), model, genes=[gene], kind=kind, device="cpu")


def test_genes_of_raw_are_put_under_their_names(model: Any, adata: AnnData) -> None:
    wanted, genes = adata.copy(), adata.var_names[:4].tolist()
    scfm.tl.perturb(wanted, model, genes=genes, kind="overexpress", device="cpu")
    ids = {symbol: gene for symbol, gene in model.vocabulary.symbols.items() if symbol in genes}
    adata.raw = adata.copy()
    adata = adata[:, list(ids)].copy()
    adata.var_names = [ids[name] for name in adata.var_names]
    scfm.tl.perturb(adata, model, genes=list(ids), kind="overexpress", use_raw=True, device="cpu")
    found, expected = adata.layers["perturb"].toarray(), wanted[:, list(ids)].layers["perturb"].toarray()
    np.testing.assert_array_equal(found, expected)
    assert "perturb" not in adata.obsm


def test_a_field_of_somebody_else_stays(model: Any) -> None:
    adata = scfm.datasets.pbmc68k()
    adata.layers["perturb_alternative_1"] = adata.X.copy()
    with pytest.raises(ValueError, match="perturb_alternative_1"):
        scfm.tl.perturb(adata, model, genes=["CD74"], alternatives=["CD34+"], **STATES)


STATES = {"states_key": "bulk_labels", "start": "CD19+ B", "goal": "CD56+ NK"}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"kind": "knockout"}, ValueError, "kind='knockout' is not known; use 'delete', 'overexpress'"),
        ({"genes": ["CD74", "NKG7x"]}, KeyError, "NKG7x"),
        ({"genes": []}, ValueError, "nothing to perturb"),
        ({"genes": [()]}, ValueError, "empty group"),
        ({"genes": [("CD79A", "CD79A")]}, ValueError, "holds a gene twice"),
        ({"genes": ["CD74", "ENSG00000019582"]}, ValueError, "'CD74' and 'ENSG00000019582' are one gene"),
        ({"genes": {"CD74": ["HLA-DRA", "HLA-DRB1"]}}, ValueError, "is called like one gene"),
        ({"genes": {"control": ["CD74"]}}, ValueError, "cannot be called 'control'"),
        ({"genes": {"a/b": ["CD74"]}}, ValueError, "name of a group of genes='a/b' cannot be stored"),
        ({"pooling": "gene"}, ValueError, "no embedding of cells"),
        ({"start": "CD19+ B"}, ValueError, "states_key= is missing"),
        (STATES | {"states_key": "nothing"}, KeyError, "not a column of obs"),
        (STATES | {"goal": "CD19+ B"}, ValueError, "must be different states"),
        (STATES | {"goal": "neuron"}, ValueError, "No cell has the state 'neuron'"),
        (STATES | {"state_average": "mode"}, ValueError, "'mean' or 'median'"),
        (
            {"genes": [tuple(scfm.datasets.pbmc68k().var_names[:9])], "max_tokens": 9, "kind": "overexpress"},
            ValueError,
            "group of 9 genes",
        ),
        ({"n_cells": 0}, ValueError, "n_cells must be at least 1"),
    ],
)
def test_what_is_refused(model: Any, arguments: Any, error: type[Exception], words: str) -> None:
    adata = scfm.datasets.pbmc68k()
    before = set(adata.layers) | set(adata.uns) | set(adata.obsm)
    with pytest.raises(error, match=words):
        scfm.tl.perturb(adata, model, **arguments)
    assert set(adata.layers) | set(adata.uns) | set(adata.obsm) == before


def test_effects_on_other_genes(model: Any, adata: AnnData) -> None:
    scfm.tl.perturb(adata, model, gene_effects=True, n_cells=4, device="cpu")
    effects, n = adata.varp["perturb"], adata.varp["perturb_n"]
    token_of = scfm.genes.align(adata.var, model.vocabulary).tokens.tolist()
    gene, other = map(int, np.argwhere(n.toarray() == n.max())[0])
    wanted = []
    for row in np.flatnonzero(adata.obs["perturb_n"]):
        genes = ranked(model, adata)[row].tolist()
        if {token_of[gene], token_of[other]} <= set(genes):
            after = changed_by_hand(np.array(genes), token_of[gene], "delete")
            old, new = states_of(model, np.array(genes)), states_of(model, after)
            wanted.append(cosine(old[genes.index(token_of[other])], new[after.tolist().index(token_of[other])]))
    assert n[gene, other] == len(wanted)
    assert effects[gene, other] == pytest.approx(np.mean(wanted), abs=2e-6)
    assert not n.diagonal().any()


def test_embeddings_of_changed_cells(model: Any, adata: AnnData, tmp_path: Path) -> None:
    names = adata.var_names[np.asarray(adata.X.getnnz(axis=0)).argsort()[::-1][:2]].tolist()
    scfm.tl.perturb(adata, model, genes=names, embeddings=True, gene_effects=True, anchor=None, device="cpu")
    scfm.tl.embed(adata, model, device="cpu")
    adata.write_h5ad(tmp_path / "a.h5ad")
    found = scfm.get.perturbed(ad.read_h5ad(tmp_path / "a.h5ad"))
    control = found[found.obs["perturbation"] == "control"]
    close(control.X, adata.obsm["X_scfm_mini"])
    token = scfm.genes.align(adata.var, model.vocabulary).tokens[adata.var_names.get_loc(names[0])]
    changed = found[found.obs["perturbation"] == names[0]]
    row = adata.obs_names.get_loc(changed.obs_names[0].removesuffix(f"_{names[0]}"))
    wanted = states_of(model, changed_by_hand(ranked(model, adata)[row], token, "delete")).mean(axis=0)
    close(changed.X[0], wanted)


def test_embeddings_of_cells_that_were_moved(model: Any) -> None:
    adata = scfm.datasets.pbmc68k()[:8].copy()
    scfm.tl.perturb(adata, model, genes=["CD74"], embeddings=True, device="cpu")
    whole = scfm.get.perturbed(adata)
    for moved in (adata[::-1], adata[3:], adata[[5, 2]]):
        found = scfm.get.perturbed(moved.copy())
        there = [name for name in whole.obs_names if name.rsplit("_", 1)[0] in moved.obs_names]
        assert found.obs_names.tolist() == there
        np.testing.assert_array_equal(found.X, whole[there].X)
    axes = scfm.pl.perturb_cells(adata[::-1].copy(), "CD74", n_neighbors=2, show=False)
    before = scfm.pl.perturb_cells(adata, "CD74", n_neighbors=2, show=False)
    np.testing.assert_array_equal(axes.collections[-1].U, before.collections[-1].U)
    adata.obs_names = ["x"] * 8
    with pytest.raises(ValueError, match="names of cells repeat"):
        scfm.get.perturbed(adata)


@pytest.mark.parametrize("on_disk", [False, True])
def test_nothing_is_left_of_an_earlier_run(on_disk: bool, model: Any, tmp_path: Path) -> None:
    adata = scfm.datasets.pbmc68k()[:8].copy()
    genes: list[Any] = [("CD74", "NKG7"), "HLA-DRA"]
    scfm.tl.perturb(adata, model, genes=genes, gene_effects=True, device="cpu")
    if on_disk:
        adata.write_h5ad(tmp_path / "a.h5ad")
        out = scfm.tl.perturb(tmp_path / "a.h5ad", model, genes=["CD74"], out=tmp_path / "b.h5ad", device="cpu")
        adata = ad.read_h5ad(out)
    else:
        scfm.tl.perturb(adata, model, genes=["CD74"], device="cpu")
    assert scfm.get.perturb_df(adata, table="raw")["names"].unique().tolist() == ["CD74"]
    assert (list(adata.obsm), list(adata.varp), list(adata.varm)) == (["X_umap"], [], [])


def test_something_else_under_the_key() -> None:
    adata = scfm.datasets.pbmc68k()[:3].copy()
    adata.uns["perturb"] = "mine"
    for read in (scfm.get.perturb_df, scfm.get.perturbed, scfm.tl.perturb_stats, scfm.pl.perturb):
        with pytest.raises(KeyError, match="call scfm.tl.perturb"):
            read(adata)


def test_a_mixture_takes_two_genes(model: Any) -> None:
    adata = scfm.datasets.pbmc68k()[:6].copy()
    adata.obs["half"] = pd.Categorical(["a"] * 6, categories=["a", "b"])
    scfm.tl.perturb(adata, model, genes=["CD74"], device="cpu")
    with pytest.raises(ValueError, match="effects of genes, of which there is 1"):
        scfm.tl.perturb_stats(adata, test="mixture", groupby="half")
    scfm.tl.perturb(adata, model, genes=["CD74", "NKG7"], device="cpu")
    scfm.tl.perturb_stats(adata, test="mixture", groupby="half")
    assert set(adata.uns["perturb"]["stats"]["group"]) == {"a"}
