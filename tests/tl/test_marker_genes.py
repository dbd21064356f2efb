"""scfm.tl.marker_genes: what masking a gene does to the embedding of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scfm
from scfm.cli import main
from scfm.model.arguments import Arguments
from scfm.tasks import MaskedGenes
from scfm.testing import write_geneformer, write_sccello, write_transcriptformer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from scfm.model import FoundationModel

N_GENES = 30
WRITE = {"V1": {"version": 1}, "V2": {"version": 2}, "scCello": {}}


@pytest.fixture(scope="module", params=WRITE)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FoundationModel:
    write: Any = write_sccello if request.param == "scCello" else write_geneformer
    folder = tmp_path_factory.mktemp("model") / request.param
    return scfm.model.load(write(folder, n_genes=N_GENES, max_tokens=16, **WRITE[request.param]))


def cells(n_obs: int = 18) -> ad.AnnData:
    rng = np.random.default_rng(0)
    x = rng.poisson(0.4, (n_obs, N_GENES)).astype(np.float32)
    x[:, 0] = 1
    obs = pd.DataFrame({"type": pd.Categorical(["a", "b", "c"] * (n_obs // 3))}, index=[f"c{i}" for i in range(n_obs)])
    return ad.AnnData(
        sparse.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(1, N_GENES + 1)])
    )


def slow(model: FoundationModel, adata: ad.AnnData, pooling: str | None = None) -> NDArray[np.float64]:
    """One run of the whole model for every gene of every cell; NaN where there is none."""
    seen: dict[int, list[int]] = {}
    forward = model.forward

    def embed(tokens: list[int]) -> NDArray[np.float64]:
        batch = scfm._types.TokenBatch(np.zeros(1, np.int64), np.asarray(tokens), np.asarray([len(tokens)]))
        with torch.inference_mode():
            return forward(network, batch, options)[0].double().numpy()

    def spy(network: torch.nn.Module, batch: Any, options: Any) -> torch.Tensor:
        parts = np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])
        seen.update(zip(batch.rows.tolist(), (part.tolist() for part in parts), strict=True))
        return forward(network, batch, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "forward", spy)
        model.embed(adata, pooling=pooling)
    options = Arguments(pooling=pooling).resolved(model)
    (network,) = model.networks(options.n_layers, [torch.device("cpu")], torch.float32)
    column = {token: i for i, token in enumerate(scfm.genes.align(adata.var, model.vocabulary).tokens.tolist())}
    scores = np.full(adata.shape, np.nan)
    for row, tokens in seen.items():
        z = embed(tokens)
        for at, token in enumerate(tokens):
            if token in column:
                masked = embed([*tokens[:at], model.vocabulary.special_tokens["<mask>"], *tokens[at + 1 :]])
                cos = z @ masked / np.linalg.norm(z) / np.linalg.norm(masked)
                scores[row, column[token]] = 1 - cos
    return scores


def computed(scores: sparse.csr_matrix) -> NDArray[np.float64]:
    dense = np.full(scores.shape, np.nan)
    rows = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))
    dense[rows, scores.indices] = scores.data
    return dense


def test_equals_one_run_a_gene(model: FoundationModel) -> None:
    adata = cells()
    assert (np.diff(adata.X.indptr) > 14).any()  # some cells do not fit
    scfm.tl.marker_genes(adata, model)
    found = adata.layers["marker_genes"]
    assert (found.dtype, found.shape, found.has_sorted_indices) == (np.float32, adata.shape, True)
    np.testing.assert_allclose(computed(found), slow(model, adata), atol=2e-6, rtol=0)
    params = adata.uns["marker_genes"]["params"]
    assert (params["method"], params["n_cells_scored"], params["model"]) == ("masking", 18, model.card.id)
    assert set(adata.uns["marker_genes"]) == {"params"}


def test_other_poolings(tmp_path: Path) -> None:
    model, adata = scfm.model.load(write_sccello(tmp_path, n_genes=N_GENES)), cells(6)
    for pooling in ("mean", "cell_cls"):
        scfm.tl.marker_genes(adata, model, pooling=pooling, key_added=pooling)
        np.testing.assert_allclose(computed(adata.layers[pooling]), slow(model, adata, pooling), atol=2e-6, rtol=0)


def test_does_not_depend_on_batches(model: FoundationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = cells()
    scfm.tl.marker_genes(adata, model)
    for budget in (20, 10_000):
        monkeypatch.setattr(scfm.settings, "batch_tokens", budget)
        scfm.tl.marker_genes(adata, model, key_added="other")
        np.testing.assert_allclose(adata.layers["other"].toarray(), adata.layers["marker_genes"].toarray(), atol=1e-6)


def test_table(model: FoundationModel) -> None:
    adata = cells()
    adata = cells(21)
    adata.obs.loc["c0", "type"] = np.nan
    scfm.tl.marker_genes(adata, model, groupby="type")
    scores = adata.layers["marker_genes"].toarray()
    assert not adata.layers["marker_genes"][0].nnz
    assert adata.layers["marker_genes"][1].nnz
    table = scfm.get.marker_genes_df(adata)
    assert table.columns.tolist() == ["group", "names", "scores", "logfoldchanges", "means", "pct_nz_group"]
    in_a = (adata.obs["type"] == "a").to_numpy()
    rest = (adata.obs["type"].isin(["b", "c"])).to_numpy()
    expected = pd.DataFrame(
        {
            "scores": scores[in_a].mean(axis=0) - scores[rest].mean(axis=0),
            "logfoldchanges": np.log2((scores[in_a].mean(axis=0) + 1e-9) / (scores[rest].mean(axis=0) + 1e-9)),
            "means": scores[in_a].mean(axis=0),
            "pct_nz_group": (adata.layers["marker_genes"][in_a] != 0).toarray().mean(axis=0),
        },
        index=adata.var_names,
    )
    found = scfm.get.marker_genes_df(adata, "a")
    assert (np.diff(found["scores"]) <= 0).all()
    pd.testing.assert_frame_equal(
        found.set_index("names"), expected.loc[found["names"]], check_dtype=False, atol=1e-6, check_names=False
    )
    assert scfm.get.marker_genes_df(adata, ["b", "c"], n_genes=2)["group"].tolist() == ["b", "b", "c", "c"]
    adata.var["symbol"] = [f"S{i}" for i in range(N_GENES)]
    symbols = scfm.get.marker_genes_df(adata, "a", gene_symbols="symbol").set_index("names")["symbol"]
    assert symbols.to_dict() == adata.var.loc[symbols.index, "symbol"].to_dict()


SCANPY_PLOTS = ("rank_genes_groups", *(f"rank_genes_groups_{kind}" for kind in ("heatmap", "stacked_violin")))
COLOURED_PLOTS = ("rank_genes_groups_dotplot", "rank_genes_groups_matrixplot")


def test_scanpy_reads_the_table(tmp_path: Path) -> None:
    import scanpy as sc

    model, adata = scfm.model.load(write_geneformer(tmp_path / "m", n_genes=N_GENES)), cells()
    adata.X = sparse.csr_matrix(adata.X.toarray() * (np.arange(N_GENES) != 7))
    scfm.tl.marker_genes(adata, model, groupby="type", genes=[*adata.var_names[:8]])
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad")
    table = sc.get.rank_genes_groups_df(adata, None, key="marker_genes")
    assert table.groupby("group", observed=True).size().tolist() == [adata.n_vars] * 3  # as the plots of scores ask for
    ours = scfm.get.marker_genes_df(adata)
    assert ours["names"].nunique() == adata.uns["marker_genes"]["params"]["n_genes_scored"] == 7
    theirs = table[table["names"].isin(adata.var_names[:7])].reset_index(drop=True)
    shared = ["names", "scores", "logfoldchanges"]
    pd.testing.assert_frame_equal(theirs[shared], ours[shared])
    assert table[["pvals", "pvals_adj"]].isna().all(axis=None)
    assert (table.loc[table["names"] == adata.var_names[7], ["scores", "logfoldchanges"]] == 0).all(axis=None)
    adata.obsm["X_counts"] = adata.X.toarray()
    sc.tl.dendrogram(adata, "type", use_rep="X_counts")
    common: dict[str, Any] = {"key": "marker_genes", "n_genes": 3, "show": False}
    for name in SCANPY_PLOTS:
        assert getattr(sc.pl, name)(adata, **common)
    for name in COLOURED_PLOTS:
        for values in (None, "scores", "logfoldchanges"):
            assert getattr(sc.pl, name)(adata, values_to_plot=values, **common)


def test_few_cells_of_a_group(tmp_path: Path) -> None:
    model, adata = scfm.model.load(write_geneformer(tmp_path / "m", n_genes=N_GENES)), cells()
    adata.obs.loc[adata.obs_names[:6], "type"] = "a"
    with pytest.warns(UserWarning, match=r"2 groups have fewer than 5 cells .*: 'b' \(4\), 'c' \(4\)\. .*n_cells="):
        scfm.tl.marker_genes(adata, model, groupby="type", genes=list(adata.var_names[:2]))


def test_plot_and_files(model: FoundationModel, tmp_path: Path) -> None:
    adata = cells()
    scfm.tl.marker_genes(adata, model, groupby="type")
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(scfm.get.marker_genes_df(again), scfm.get.marker_genes_df(adata))
    axes = scfm.pl.marker_genes(again, ["a", "c"], n_genes=5, show=False)
    assert len(axes) == 2
    assert len(scfm.pl.marker_genes(again, "a", n_genes=5, show=False)) == 1
    with pytest.raises(KeyError, match="gene_symbols='none' is not a column of var"):
        scfm.get.marker_genes_df(again, "a", gene_symbols="none")
    with pytest.raises(KeyError, match="'x' is not a group"):
        scfm.pl.marker_genes(again, "x")


def test_chosen_cells_and_genes(model: FoundationModel) -> None:
    adata = cells()
    scfm.tl.marker_genes(adata, model)
    whole = computed(adata.layers["marker_genes"])
    names = [adata.var_names[3], adata.var_names[0]]
    scfm.tl.marker_genes(adata, model, groupby="type", n_cells=5, genes=names, key_added="some")
    some = computed(adata.layers["some"])
    used = ~np.isnan(some)
    np.testing.assert_allclose(some[used], whole[used], atol=1e-6)
    assert np.flatnonzero(used.any(axis=0)).tolist() in ([0, 3], [0])
    assert adata.obs["type"][used.any(axis=1)].value_counts().tolist() == [5, 5, 5]
    scfm.tl.marker_genes(adata, model, groupby="type", n_cells=5, genes=names, key_added="again")
    np.testing.assert_array_equal(adata.layers["again"].toarray(), adata.layers["some"].toarray())
    scfm.tl.marker_genes(adata, model, n_cells=5, key_added="five")
    assert np.count_nonzero(np.diff(adata.layers["five"].indptr)) == 5


@pytest.mark.filterwarnings("ignore:X holds .* reading raw")
def test_raw_backed_and_copies(tmp_path: Path) -> None:
    model = scfm.model.load(write_geneformer(tmp_path / "m", n_genes=N_GENES))
    raw = cells()
    scfm.tl.marker_genes(raw, model)
    adata = raw[:, ::-2].copy()
    adata.X = np.log1p(adata.X.toarray())
    del adata.layers["marker_genes"], adata.uns["marker_genes"]
    adata.raw = raw
    changed = scfm.tl.marker_genes(adata, model, copy=True)
    assert not adata.layers
    assert changed is not None
    np.testing.assert_array_equal(
        changed.layers["marker_genes"].toarray(), raw.layers["marker_genes"][:, ::-2].toarray()
    )
    del raw.layers["marker_genes"], raw.uns["marker_genes"]
    raw.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    scfm.tl.marker_genes(backed, model)
    np.testing.assert_array_equal(
        backed.layers["marker_genes"].toarray()[:, ::-2], changed.layers["marker_genes"].toarray()
    )


def test_memory_runs_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, adata = scfm.model.load(write_geneformer(tmp_path, n_genes=N_GENES)), cells()
    scfm.tl.marker_genes(adata, model)
    plain = MaskedGenes._scores

    def limited(self: Any, network: Any, batch: Any) -> torch.Tensor:
        if self._max_tokens > 100:
            msg = "out of memory"
            raise RuntimeError(msg)
        return plain(self, network, batch)

    monkeypatch.setattr(MaskedGenes, "_scores", limited)
    scfm.tl.marker_genes(adata, model, key_added="less")
    np.testing.assert_allclose(adata.layers["less"].toarray(), adata.layers["marker_genes"].toarray(), atol=1e-6)
    assert "continuing with 64 tokens at a time" in caplog.text
    monkeypatch.setattr(MaskedGenes, "_scores", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        scfm.tl.marker_genes(adata, model)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groupby": "nothing"}, KeyError, "groupby='nothing' is not a column of obs"),
        ({"groupby": "empty"}, ValueError, "no value but missing ones"),
        ({"n_cells": 0}, ValueError, "n_cells must be at least 1"),
        ({"genes": []}, ValueError, "genes is empty"),
        ({"layer": "counts", "key_added": "counts"}, ValueError, "would overwrite layers\\['counts'\\]"),
        ({"key_added": "taken"}, ValueError, "would overwrite uns\\['taken'\\]"),
        ({"genes": ["TP53"]}, KeyError, "1 genes are not in the data by any of their names, such as 'TP53'"),
        ({"pooling": "gene"}, ValueError, "gives no embedding of cells"),
        ({"key_added": "a/b"}, ValueError, "cannot be stored"),
        ({"nonsense": 1}, TypeError, "'nonsense' is no option"),
    ],
)
def test_errors(model: FoundationModel, arguments: dict[str, Any], error: type, message: str) -> None:
    adata = cells()
    adata.obs["empty"] = pd.Categorical([None] * adata.n_obs)
    adata.layers["counts"], adata.uns["taken"] = adata.X.copy(), {"params": {"model": "x"}}
    with pytest.raises(error, match=message):
        scfm.tl.marker_genes(adata, model, **arguments)
    assert (adata.layers["counts"] != adata.X).nnz == 0
    assert list(adata.layers) == ["counts"]
    assert adata.uns == {"taken": {"params": {"model": "x"}}}


def test_models_without_masks(tmp_path: Path) -> None:
    model = scfm.model.load(write_transcriptformer(tmp_path))
    with pytest.raises(TypeError, match="was not trained with masked genes"):
        scfm.tl.marker_genes(cells(), model)
    with pytest.raises(TypeError, match="tf-sapiens was not trained with masked genes"):
        scfm.tl.marker_genes(cells(), "tf-sapiens")  # before anything is fetched
    with pytest.raises(TypeError, match="data must be AnnData, MuData, str or Path; got 1"):
        scfm.tl.marker_genes(1, model)  # type: ignore[arg-type]


def test_get_needs_a_result() -> None:
    with pytest.raises(KeyError, match="holds no ranked genes"):
        scfm.get.marker_genes_df(cells())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, adata = write_sccello(tmp_path / "m", n_genes=N_GENES), cells()
    adata.write_h5ad(tmp_path / "a.h5ad")
    table, out = tmp_path / "markers.tsv", tmp_path / "out.h5ad"
    command = ["marker-genes", str(tmp_path / "a.h5ad"), "--model", str(folder), "--groupby", "type", "--n-cells", "5"]
    assert main([*command, "--out", str(out), "--table", str(table)]) == 0
    assert "30 genes of 3 groups" in capsys.readouterr().out
    scfm.tl.marker_genes(adata, folder, groupby="type", n_cells=5)
    expected = scfm.get.marker_genes_df(adata)
    found = pd.read_csv(table, sep="\t")
    pd.testing.assert_frame_equal(found, expected.astype({"group": str}), check_dtype=False, rtol=1e-5)
    pd.testing.assert_frame_equal(scfm.get.marker_genes_df(ad.read_h5ad(out)), expected)
    assert main([*command, "--out", str(tmp_path / "other.h5ad"), "--table", str(table)]) == 1
    assert f"{table} exists already" in capsys.readouterr().err
    some = ["--overwrite", "--genes", *adata.var_names[:2]]
    assert main([*command, "--out", str(out), "--table", str(table), *some]) == 0
    assert "2 genes of 3 groups" in capsys.readouterr().out
    assert main([*command, "--out", str(out), "--table", str(tmp_path / "out.xlsx")]) == 1
    assert "its name must end in .csv or .tsv" in capsys.readouterr().err
    assert main([*command[:4], "--out", str(tmp_path / "other.h5ad"), "--table", str(tmp_path / "other.csv")]) == 1
    assert "give --groupby" in capsys.readouterr().err


def test_no_cells() -> None:
    adata = scfm.datasets.pbmc68k()[:0].copy()
    scfm.tl.marker_genes(adata, "scfm-mini")
    assert adata.layers["marker_genes"].shape == adata.shape
