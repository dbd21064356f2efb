"""Every bad input gives one clear error or warning, before the long work, and leaves the data as they were."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scfm
from scfm.testing import write_geneformer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scfm.model import FoundationModel

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")

N_OBS, N_GENES, N_LAYERS = 10, 40, 2
IDS = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]
EXPECTS_HUMAN = r"expects human Ensembl ids such as \['ENSG.*gene_key="


Errors = type[Exception] | tuple[type[Exception], ...]


def load_tiny(folder: Path, version: Any) -> FoundationModel:
    sizes = {"n_genes": N_GENES, "n_layers": N_LAYERS, "max_tokens": 32}
    return scfm.model.load(write_geneformer(folder / f"tiny-v{version}", version=version, **sizes))


@pytest.fixture(scope="session")
def v1(tmp_path_factory: pytest.TempPathFactory) -> FoundationModel:
    return load_tiny(tmp_path_factory.mktemp("model"), 1)


@pytest.fixture(scope="session")
def v2(tmp_path_factory: pytest.TempPathFactory) -> FoundationModel:
    return load_tiny(tmp_path_factory.mktemp("model"), 2)


def counts(n_obs: int = N_OBS) -> np.ndarray:
    values = np.random.default_rng(3).poisson(0.8, (n_obs, N_GENES)).astype(np.float32)
    values[:, 0] += 1
    return values


def anndata(values: np.ndarray | None = None, genes: list[str] | None = None, **parts: Any) -> ad.AnnData:
    x = counts() if values is None else values
    genes = IDS[: x.shape[1]] if genes is None else genes
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(len(x))])
    return ad.AnnData(sparse.csr_matrix(x), obs=obs, var=pd.DataFrame(index=genes), **parts)


def refused(adata: ad.AnnData, model: Any, error: Errors, match: str, **arguments: Any) -> None:
    """Embedding raises, and nothing is stored."""
    before = adata.X.copy()
    with pytest.raises(error, match=match):
        scfm.tl.embed(adata, model, **arguments)
    assert not list(adata.obsm)
    assert not list(adata.varm)
    assert not list(adata.uns)
    np.testing.assert_array_equal(adata.X.toarray(), before.toarray())


def with_empty_cells() -> ad.AnnData:
    """Cells 2 and 7 hold nothing, cell 5 only a gene that the model does not know."""
    values = np.hstack([counts(), np.zeros((N_OBS, 1), np.float32)])
    values[[2, 5, 7]] = 0
    values[5, -1] = 9
    return anndata(values, [*IDS, "ENSG00000999999"])


@pytest.mark.parametrize("pooling", ["mean", "gene"])
def test_empty_cells_of_v1_are_nan(v1: FoundationModel, pooling: str) -> None:
    adata = with_empty_cells()
    with pytest.warns(UserWarning, match=r"3 of 10 cells hold no gene.*NaN.*match_genes.*filter_cells") as caught:
        scfm.tl.embed(adata, v1, pooling=pooling)
    assert len(caught) == 1
    assert adata.uns["geneformer"]["params"]["n_cells_empty"] == 3
    if pooling == "mean":
        empty = np.isnan(adata.obsm["X_geneformer"])
        assert empty.all(axis=1).tolist() == [i in (2, 5, 7) for i in range(N_OBS)]
        assert empty.any(axis=1).sum() == 3
    else:
        assert np.isnan(adata.varm["X_geneformer"][-1]).all()
        assert not np.isnan(adata.varm["X_geneformer"][0]).any()


def test_empty_cells_of_v2_have_the_value_of_the_special_tokens(v2: FoundationModel) -> None:
    import torch

    adata = with_empty_cells()
    with pytest.warns(UserWarning, match="3 of 10 cells hold no gene of the model; their rows are those of an empty"):
        scfm.tl.embed(adata, v2)
    special = [v2.vocabulary.special_tokens[name] for name in ("<cls>", "<eos>")]
    with torch.inference_mode():
        wanted = v2.network(N_LAYERS - 1)(torch.tensor(special), [2])[0].numpy()
    rows = adata.obsm["X_geneformer"]
    np.testing.assert_allclose(rows[[2, 5, 7]], np.tile(wanted, (3, 1)), rtol=0, atol=5e-6)
    assert adata.uns["geneformer"]["params"]["n_cells_empty"] == 3
    with pytest.warns(UserWarning, match="3 of 10"):
        means = v2.embed(adata, pooling="mean")
    assert np.isnan(means).all(axis=1).tolist() == [i in (2, 5, 7) for i in range(N_OBS)]


def test_all_cells_empty(v1: FoundationModel) -> None:
    adata = anndata(np.zeros((4, N_GENES), np.float32))
    with pytest.warns(UserWarning, match="4 of 4 cells"):
        scfm.tl.embed(adata, v1)
    assert np.isnan(adata.obsm["X_geneformer"]).all()


def test_no_cells(v2: FoundationModel) -> None:
    adata = anndata(counts()[:0])
    scfm.tl.embed(adata, v2)
    assert adata.obsm["X_geneformer"].shape == (0, v2.n_features)
    assert np.isnan(v2.embed(adata, pooling="gene")).all()


UNKNOWN_GENES: dict[str, tuple[list[str], str]] = {
    "mouse ids": ([f"ENSMUSG{i:011d}" for i in range(N_GENES)], "mouse Ensembl ids such as"),
    "versioned mouse ids": ([f"ENSMUSG{i:011d}.3" for i in range(N_GENES)], "mouse Ensembl ids such as"),
    "mouse symbols": ([f"Gene{i}" for i in range(N_GENES)], "mouse or rat gene symbols such as"),
    "fly": ([f"FBgn{i:07d}" for i in range(N_GENES)], "fruit fly Ensembl ids"),
    "other human ids": ([f"ENSG{i:011d}" for i in range(700, 700 + N_GENES)], "human Ensembl ids such as"),
    "symbols": ([f"XYZ{i}" for i in range(N_GENES)], "gene symbols or other names such as"),
    "numbers": ([str(i) for i in range(N_GENES)], "plain numbers"),
    "barcodes": ([f"lane1_{'ACGT' * 4}-{i}" for i in range(N_GENES)], r"barcodes of cells .*adata\.T"),
    "id and symbol": ([f"{gene}_S{i}" for i, gene in enumerate(IDS)], r"Ensembl ids joined to other names \(split"),
    "symbol and id": ([f"S{i}|{gene}.2" for i, gene in enumerate(IDS)], r"Ensembl ids joined to other names \(split"),
}


@pytest.mark.parametrize("kind", UNKNOWN_GENES)
def test_no_gene_is_known(v2: FoundationModel, kind: str) -> None:
    genes, looks = UNKNOWN_GENES[kind]
    match = f"No gene of the data is known to the model: var_names holds {looks}.*{EXPECTS_HUMAN}"
    refused(anndata(genes=genes), v2, ValueError, match)
    with pytest.raises(ValueError, match=match):
        scfm.pp.match_genes(anndata(genes=genes), v2)


def test_not_genes_at_all(v2: FoundationModel) -> None:
    refused(anndata(counts()[:, :0], []), v2, ValueError, "No gene.*the data has no genes")


def test_a_known_column_beats_unknown_names(v2: FoundationModel) -> None:
    adata = anndata(genes=[f"Gene{i}" for i in range(N_GENES)])
    adata.var["gene_ids"] = IDS
    scfm.tl.embed(adata, v2)
    assert adata.uns["geneformer"]["params"]["genes"]["gene_key"] == "gene_ids"
    del adata.uns, adata.obsm
    refused(adata, v2, KeyError, r"gene_key='ids' is not a column of var; found \['gene_ids'\]", gene_key="ids")
    refused(adata, v2, ValueError, "mouse or rat gene symbols", gene_key="index")


def test_few_known_genes_give_a_warning(v2: FoundationModel) -> None:
    adata = anndata(genes=[*IDS[:4], *(f"ENSG{i:011d}" for i in range(700, 700 + N_GENES - 4))])
    with pytest.warns(UserWarning, match=r"Only 4 of 40 genes in var_names match.*Unmatched.*species.*gene_key="):
        scfm.tl.embed(adata, v2)


def test_duplicated_names_need_no_unique_var_names(v2: FoundationModel) -> None:
    values = counts()
    adata = anndata(np.hstack([values, values]), [f"row{i}" for i in range(2 * N_GENES)])
    adata.var_names = IDS + IDS  # the constructor would warn
    scfm.tl.embed(adata, v2)
    np.testing.assert_array_equal(adata.obsm["X_geneformer"], v2.embed(anndata(2 * values)))
    assert adata.uns["geneformer"]["params"]["genes"]["merged"] == N_GENES


def test_normalised_values_give_a_warning_that_names_the_counts(v2: FoundationModel) -> None:
    adata = anndata(np.log1p(counts()))
    adata.layers["counts"] = sparse.csr_matrix(counts())
    with pytest.warns(UserWarning, match=r"log-transformed.*not counts.*layer='counts'"):
        scfm.tl.embed(adata, v2, use_raw=False)
    without = anndata(np.log1p(counts()))
    with pytest.warns(UserWarning, match=r"not counts.*put the counts into a layer"):
        scfm.tl.embed(without, v2)
    np.testing.assert_array_equal(adata.obsm["X_geneformer"], without.obsm["X_geneformer"])


def test_counts_in_raw_or_a_layer_are_found_and_named(v2: FoundationModel) -> None:
    adata = anndata(np.log1p(counts()))
    adata.layers["counts"] = counts()
    with pytest.warns(UserWarning, match=r"X holds log-.*reading layers\['counts'\]") as caught:
        scfm.tl.embed(adata, v2)
    assert [warning.filename for warning in caught] == [__file__]
    assert adata.uns["geneformer"]["params"]["matrix"] == "layers['counts']"
    adata.raw = anndata()
    with pytest.warns(UserWarning, match=r"X holds log-.*reading raw\.X"):
        scfm.tl.embed(adata, v2)
    assert adata.uns["geneformer"]["params"]["matrix"] == "raw.X"
    np.testing.assert_array_equal(adata.obsm["X_geneformer"], v2.embed(anndata()))


def test_normalised_cells_behind_the_sample_are_counted(v2: FoundationModel) -> None:
    values = np.zeros((1200, N_GENES), np.float32)
    values[:, :2] = 1
    values[300:310, 1] = 0.5
    with pytest.warns(UserWarning, match="10 of 1200 cells hold values that are not whole numbers, and the others"):
        params = v2.run(anndata(values)).params
    assert params["n_cells_fractional"] == 10
    assert "n_cells_fractional" not in v2.run(anndata(values[:300])).params


BAD_VALUES = {
    "negative": (-3.0, "-3"),
    "NaN": (np.nan, "nan"),
    "infinite": (np.inf, "inf"),
    "minus inf": (-np.inf, "-inf"),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_values_that_are_no_counts_are_refused_early(v2: FoundationModel, kind: str) -> None:
    value, text = BAD_VALUES[kind]
    adata = anndata()
    adata.X[6, 3] = value
    match = rf"X of AnnData holds {text} for cell 'cell6' \(row 6\), gene '{IDS[3]}'.*finite and not negative.*leave the cell out"
    refused(adata, v2, ValueError, match)


@pytest.mark.parametrize("kind", BAD_VALUES)
@pytest.mark.parametrize("block_rows", [4096, 100])
def test_values_that_are_no_counts_are_found_behind_the_sample(
    v2: FoundationModel, kind: str, block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scfm.settings, "block_rows", block_rows)
    values = np.zeros((5000, N_GENES), np.float32)
    values[:, :2] = 1
    values[2000, 1] = BAD_VALUES[kind][0]
    match = rf"Cell 2000 holds the value {BAD_VALUES[kind][1]}.*column 1.*layer=.*use_raw="
    refused(anndata(values), v2, ValueError, match)


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], Errors, str]] = {
    "layer": ({"layer": "cnts"}, ValueError, r"no layer 'cnts'. Its layers: 'counts', 'other'"),
    "layer and raw": ({"layer": "counts", "use_raw": True}, ValueError, "two different matrices"),
    "raw": ({"use_raw": True}, ValueError, r"has no raw.*layers\['counts'\]"),
    "modality": ({"modality": "rna"}, ValueError, "modality='rna' is for a MuData"),
    "pooling": (
        {"pooling": "max"},
        ValueError,
        "pooling='max' is not known to tiny-v2; use one of 'cls', 'mean', 'gene'",
    ),
    "positive layer": ({"hidden_layer": 1}, ValueError, "hidden_layer=1 does not exist: 0 is the last of 2 layers"),
    "too deep": ({"hidden_layer": -3}, ValueError, "hidden_layer=-3 does not exist.*down to -2"),
    "few tokens": ({"max_tokens": 2}, ValueError, "max_tokens=2 is out of range: tiny-v2 takes 3 to 32"),
    "many tokens": ({"max_tokens": 33}, ValueError, "max_tokens=33 is out of range"),
    "tokens with a fraction": (
        {"max_tokens": 10.5},
        (TypeError, ValueError),
        "max_tokens must be int or None; got 10.5",
    ),
    "tokens as text": ({"max_tokens": "10"}, (TypeError, ValueError), "max_tokens must be int or None; got '10'"),
    "layer with a fraction": (
        {"hidden_layer": -0.5},
        (TypeError, ValueError),
        "hidden_layer must be int or None; got -0.5",
    ),
    "dtype": ({"dtype": "float64"}, ValueError, "dtype='float64' is not supported; use one of float32, bfloat16"),
    "dtype name": ({"dtype": "single"}, ValueError, "dtype='single' is not supported"),
    "device": ({"device": "tpux"}, ValueError, "device='tpux' is not a torch device; use 'cpu', 'cuda'"),
    "absent device": ({"device": "cuda:99"}, ValueError, "cannot be used here; available: cpu.*the fastest"),
    "compat": ({"compat": "legacy"}, ValueError, "compat='legacy' is not known; use 'upstream'"),
    "n_counts": ({"compat": "upstream"}, KeyError, r"obs\['n_counts'\], which is missing.*compat=None"),
    "option": ({"n_batches": 3}, TypeError, "'n_batches' is no option of this call.*'geneformer' takes no options"),
    "gene key in a list": ({"gene_key": ["a"]}, TypeError, "gene_key must be str or None; got list of str"),
    "modality in a list": ({"modality": ["rna"]}, TypeError, "modality must be str or None; got list of str"),
    "slash": ({"key_added": "a/b"}, ValueError, "key_added='a/b' cannot be stored.*without '/'"),
    "empty key": ({"key_added": ""}, ValueError, "key_added='' cannot be stored"),
    "number as key": ({"key_added": 5}, TypeError, "key_added must be str or None; got 5"),
}


@pytest.mark.parametrize("kind", BAD_ARGUMENTS)
def test_bad_arguments(v2: FoundationModel, kind: str) -> None:
    arguments, error, match = BAD_ARGUMENTS[kind]
    adata = anndata(layers={"counts": sparse.csr_matrix(counts()), "other": sparse.csr_matrix(counts())})
    refused(adata, v2, error, match, **arguments)


def test_cls_is_not_offered_without_a_cls_token(v1: FoundationModel) -> None:
    refused(
        anndata(), v1, ValueError, "pooling='cls' is not known to tiny-v1; use one of 'mean', 'gene'", pooling="cls"
    )


def test_data_of_another_type(v2: FoundationModel, tmp_path: Path) -> None:
    path = tmp_path / "a.h5ad"
    anndata().write_h5ad(path)
    for data in (path, str(path)):
        with pytest.raises(ValueError, match=r"tl.embed does not change the file .*a.h5ad. Give out="):
            scfm.tl.embed(data, v2)
    with pytest.raises(TypeError, match=r"got ndarray"):
        scfm.tl.embed(counts(), v2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got ndarray. Wrap a matrix in an AnnData"):
        v2.embed(counts())  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"no file .*b.h5ad"):
        v2.embed(tmp_path / "b.h5ad")


@pytest.mark.parametrize(("modality", "match"), [(None, "needs modality="), ("rnaa", "has no modality 'rnaa'")])
def test_mudata_needs_a_known_modality(v2: FoundationModel, modality: str | None, match: str) -> None:
    mdata = md.MuData({"rna": anndata()})
    with pytest.raises(ValueError, match=match + r".*Its modalities: 'rna'"):
        scfm.tl.embed(mdata, v2, modality=modality)
    assert not list(mdata["rna"].obsm)
    assert not list(mdata["rna"].uns)


def test_existing_results_are_overwritten(v2: FoundationModel, caplog: pytest.LogCaptureFixture) -> None:
    adata = anndata()
    adata.obsm["X_geneformer"] = np.zeros((N_OBS, 2))
    adata.uns["geneformer"] = {"params": {"function": "scfm.tl.embed"}, "other": 1}
    with caplog.at_level(logging.INFO, "scfm"):
        scfm.tl.embed(adata, v2)
    assert "overwriting .obsm['X_geneformer']" in caplog.text
    np.testing.assert_array_equal(adata.obsm["X_geneformer"], v2.embed(anndata()))
    assert set(adata.uns["geneformer"]) == {"params"}


def muon(adata: ad.AnnData) -> md.MuData:
    return md.MuData({"rna": adata})


@pytest.mark.parametrize("wrap", [None, muon], ids=["AnnData", "MuData"])
def test_copy_leaves_the_original_alone(v2: FoundationModel, wrap: Callable[[ad.AnnData], Any] | None) -> None:
    data = anndata() if wrap is None else wrap(anndata())
    arguments = {} if wrap is None else {"modality": "rna"}
    changed = scfm.tl.embed(data, v2, copy=True, key_added="z", **arguments)
    old, new = (data, changed) if wrap is None else (data["rna"], changed["rna"])
    assert (list(old.obsm), list(old.uns), list(new.obsm), list(new.uns)) == ([], [], ["z"], ["z"])
    assert scfm.tl.embed(data, v2, **arguments) is None
    np.testing.assert_array_equal(new.obsm["z"], old.obsm["X_geneformer"])


def test_a_view_becomes_an_object_of_its_own(v2: FoundationModel) -> None:
    adata = anndata()
    view = adata[3:7]
    with pytest.warns(ad.ImplicitModificationWarning):
        scfm.tl.embed(view, v2)
    assert not list(adata.obsm)
    assert not list(adata.uns)
    np.testing.assert_allclose(view.obsm["X_geneformer"], v2.embed(adata)[3:7], rtol=0, atol=5e-6)


@pytest.mark.parametrize("what", ["view", "copy"])
def test_backed_data_that_cannot_take_results_are_refused_early(
    v2: FoundationModel, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anndata().write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    monkeypatch.setattr(v2, "run", lambda *_, **__: pytest.fail("the long work was begun"))
    with pytest.raises(ValueError, match=rf"{what} of backed data cannot take results.*to_memory\(\)"):
        scfm.tl.embed(backed[:4] if what == "view" else backed, v2, copy=what == "copy")
    backed.file.close()


def test_a_read_only_file_is_enough(v2: FoundationModel, tmp_path: Path) -> None:
    path = tmp_path / "a.h5ad"
    anndata().write_h5ad(path)
    path.chmod(0o444)
    before = path.read_bytes()
    wanted = v2.embed(anndata())
    np.testing.assert_array_equal(v2.embed(path), wanted)
    backed = ad.read_h5ad(path, backed="r")
    scfm.tl.embed(backed, v2)
    np.testing.assert_array_equal(backed.obsm["X_geneformer"], wanted)
    backed.file.close()
    assert path.read_bytes() == before
