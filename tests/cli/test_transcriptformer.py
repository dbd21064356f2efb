"""TranscriptFormer on the command line, under upstream's names of options too, and the files that results are put in."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata.tests.helpers import assert_equal
from scipy import sparse

import scfm
from scfm.cli import main
from scfm.model.arguments import Arguments
from scfm.model.families.transcriptformer import TranscriptFormer
from scfm.testing import write_geneformer, write_transcriptformer
from scfm.weights.gene_vectors import write_gene_vectors
from tests.rounding import close

from ..families import dense_states

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning", "ignore:Consolidated metadata:UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]
N_OBS, N_GENES = 9, 30
IDS = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]
MOUSE = [f"ENSMUSG{i:011d}" for i in range(1, N_GENES + 1)]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models, and files of gene vectors of mouse."""
    root, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(2)
    tiny = write_transcriptformer(root / "tiny", n_genes=N_GENES, embed_dim=8, gene_width=6, seq_len=29)
    return {
        "tiny": tiny,
        "converted": scfm.model.convert(tiny, root / "converted"),
        "geneformer": write_geneformer(root / "geneformer", n_genes=N_GENES, n_layers=1, hidden_size=8),
        "a": write_gene_vectors(root / "a_gene.h5", MOUSE[:20], rng.standard_normal((20, 6))),
        "b": write_gene_vectors(root / "b_gene.h5", MOUSE[20:], rng.standard_normal((10, 6))),
    }


def anndata(genes: list[str] = IDS) -> ad.AnnData:
    """Counts in X and other ones in raw, ids in several columns, one gene twice in one of them."""
    rng = np.random.default_rng(5)
    x = sparse.csr_matrix(rng.poisson(1, (N_OBS, N_GENES)).astype(np.float32) * 9 + np.eye(N_OBS, N_GENES, dtype="f4"))
    obs = pd.DataFrame(
        {"assay": pd.Categorical(["10x 3' v3", "Smart-seq v4", "unknown"] * 3), "note": list("abcdefghi")},
        index=pd.Index([f"cell-{i}" for i in range(N_OBS)], name="barcode"),
    )
    var = pd.DataFrame(
        {"gene_ids": genes, "twice": [*genes[:-1], genes[0]]}, index=[f"gene{i}" for i in range(N_GENES)]
    )
    adata = ad.AnnData(x * 2, obs=obs, var=var)
    adata.raw = adata.copy()
    adata.X = x
    return adata


@pytest.fixture
def source(tmp_path: Path) -> Path:
    anndata().write_h5ad(tmp_path / "a.h5ad")
    return tmp_path / "a.h5ad"


def embed(source: Path, model: Path | str, *more: str, out: str = "out.h5ad", command: str = "embed") -> int:
    given = [command, str(source), "--checkpoint-path", str(model), "--out", str(source.with_name(out))]
    return main([*given, "--device", "cpu", *more])


ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gene_col_name": ("twice", {"gene_key": "twice"}),
    "clip_counts": ("7", {"clip_counts": 7}),
    "use_raw auto": ("auto", {"use_raw": None}),
    "use_raw True": ("True", {"use_raw": True}),
    "use_raw False": ("False", {"use_raw": False}),
    "precision 32": ("32", {"dtype": "float32"}),
    "precision 16": ("16-mixed", {"dtype": "bfloat16"}),
    "emb_type": ("cell", {"pooling": "cell"}),
    "normalize_to_scale": ("100", {"normalize_to_scale": 100}),
    "model_type": ("esm2ce", {}),
    "model_type tf": ("transcriptformer", {}),
    "remove_duplicate_genes": ("true", {"remove_duplicate_genes": True, "gene_key": "twice"}),
    "aux_cols": ("note", {"aux_cols": "note"}),
    "sort_genes": ("true", {"sort_genes": True}),
    "filter_to_vocabs": ("false", {"filter_to_vocabs": False}),
    "gene_order": ("vocabulary", {"gene_order": "vocabulary"}),
    "seed": ("3", {"randomize_genes": True, "seed": 3}),
}


def plain(value: Any) -> Any:
    """A value as Python has it, whatever file it comes from."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


@pytest.mark.filterwarnings("ignore:.*have an assay in obs")
@pytest.mark.parametrize("spelling", ["--{} {}", "--{}={}"])
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_names_of_upstream_mean_what_ours_mean_in_python(
    kind: str, spelling: str, folders: dict[str, Path], source: Path
) -> None:
    value, arguments = ARGUMENTS[kind]
    name, family = kind.partition(" ")[0], value if "model_type" in kind else "transcriptformer"
    wanted = scfm.model.load(folders["tiny"], family=family).run(source, Arguments.of({"device": "cpu", **arguments}))
    dashed = name.replace("_", "-") if " " in spelling else name
    given = spelling.format(dashed, value).split(" ")
    given += ["--gene_key", "twice"] if name == "remove_duplicate_genes" else []
    given += ["--randomize-genes=true"] if name == "seed" else []
    assert embed(source, folders["tiny"], *given) == 0
    found = ad.read_h5ad(source.with_name("out.h5ad"))
    np.testing.assert_array_equal(found.obsm[f"X_{family}"], wanted.values)
    assert plain(found.uns[family]["params"]) == wanted.params | {"function": "scfm.tl.embed"}
    del found.obsm[f"X_{family}"], found.uns[family]
    assert_equal(found, ad.read_h5ad(source), exact=True)
    assert found.obs_names.tolist() == [f"cell-{i}" for i in range(N_OBS)]


@pytest.mark.parametrize("spelling", ["{}", "[{},{}]", '["{}", "{}"]'])
@pytest.mark.parametrize("name", ["--pretrained-embedding", "--pretrained_embedding"])
def test_gene_vectors_of_other_species(name: str, spelling: str, folders: dict[str, Path], tmp_path: Path) -> None:
    adata = anndata(MOUSE)
    adata.write_h5ad(tmp_path / "a.h5ad")
    paths = [str(folders["a"]), str(folders["b"])][: spelling.count("{")]
    assert embed(tmp_path / "a.h5ad", folders["converted"], name, spelling.format(*paths)) == 0
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    wanted = scfm.model.load(folders["tiny"]).embed(adata, pretrained_embedding=paths)
    np.testing.assert_array_equal(found.obsm["X_transcriptformer"], wanted)
    assert found.uns["transcriptformer"]["params"]["options"]["pretrained_embedding"].tolist() == paths


@pytest.mark.parametrize("family", ["transcriptformer", "esm2ce"])
def test_states_of_genes_go_to_a_folder(
    family: str, folders: dict[str, Path], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [f"--model-type={family}", "--clip-counts", "9"]
    assert embed(source, folders["tiny"], *more, out="states", command="gene_embeddings") == 0
    assert f"wrote {source.with_name('states')}\nIn Python, anndata.read_zarr(" in capsys.readouterr().out
    model = scfm.model.load(folders["tiny"], family=family)
    wanted: Any = scfm.tl.gene_embeddings(source, model, clip_counts=9)
    found = ad.read_zarr(source.with_name("states"))
    np.testing.assert_array_equal(found.X, wanted.X)
    pd.testing.assert_frame_equal(found.obs, wanted.obs)
    assert embed(source, folders["tiny"], *more, out="states", command="gene-embeddings") == 1
    assert "exists already; choose another name" in capsys.readouterr().err
    assert embed(source, folders["tiny"], *more, "--overwrite", out="states", command="gene-embeddings") == 0


WRONG: dict[str, tuple[str, list[str], int, str]] = {
    "unknown": ("tiny", ["--bogus", "1"], 2, "there is no option --bogus 1."),
    "number": ("tiny", ["--clip-counts", "many"], 2, "--clip-counts many is not accepted; expected a number."),
    "choice": ("tiny", ["--gene-order", "name"], 2, "--gene-order name is not accepted; expected input or vocabulary or expression."),
    "kind": ("tiny", ["--emb-type=both"], 2, "--emb-type both is not known"),
    "no value": ("tiny", ["--layer"], 2, "--layer: expected one argument"),
    "geneformer": ("geneformer", ["--clip-counts", "5"], 1, "TypeError: 'clip_counts' is no option of this call, and the family 'geneformer' takes no options"),
    "scfm-mini": ("scfm-mini", ["--clip-counts=5"], 1, "TypeError: 'clip_counts' is no option of this call, and the family 'scfm_mini' takes no options"),
    "default": ("scfm-mini", ["--seed", "0"], 1, "TypeError: 'seed' is no option of this call"),
    "family": ("tiny", ["--model-type", "gpt"], 1, "ValueError: --family='gpt' is not known"),
    "precision": ("tiny", ["--precision", "64"], 1, "ValueError: --dtype='64' is not supported"),
    "range": ("tiny", ["--clip-counts", "0"], 1, "ValueError: --clip-counts=0 would cut all counts"),
    "orders": ("tiny", ["--sort-genes", "true", "--gene-order", "vocabulary"], 1, "ValueError: --gene-order='vocabulary' and --sort-genes"),
    "column": ("tiny", ["--gene-col-name", "no"], 1, "KeyError: --gene-key='no' is not a column of var"),
    "file": ("tiny", ["--pretrained-embedding", "no.h5"], 1, "FileNotFoundError: There is no file no.h5"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_call(kind: str, folders: dict[str, Path], source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, more, code, text = WRONG[kind]
    try:
        found = embed(source, folders.get(model, model), *more)
    except SystemExit as error:
        found = int(error.code or 0)
    lines = [line for line in capsys.readouterr().err.splitlines() if text in line]
    assert (found, len(lines)) == (code, 1)
    assert code == 2 or lines[0].startswith(f"scfm: {text}")
    assert list(source.parent.iterdir()) == [source]


NEEDLESS = {
    "--batch-size 8": "cells are packed by their length",
    "--batch_size=8": "cells are packed by their length",
    "--oom-dataloader": "files are always read block by block",
    "--oom-dataloader true": "files are always read block by block",
    "--n-data-workers 4": "files are read and encoded in threads while the network computes",
    "--disable-compile-block-mask": "nothing is compiled",
}


@pytest.mark.parametrize("given", NEEDLESS)
def test_options_of_upstream_that_are_not_needed(
    given: str, folders: dict[str, Path], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(source, folders["tiny"], *given.split(" ")) == 0
    name = given.replace("_", "-").partition("=")[0].partition(" ")[0]
    assert f"scfm: {name} is not needed: {NEEDLESS[given]}" in capsys.readouterr().err
    assert "X_transcriptformer" in ad.read_h5ad(source.with_name("out.h5ad")).obsm


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["--use-raw"], True),
        (["--use_raw", "false"], False),
        (["--use-raw=False"], False),
        (["--use-raw", "auto"], None),
        (["--use-raw", "--clip-counts", "30"], True),
    ],
    ids=str,
)
def test_flags_may_have_a_value(given: list[str], wanted: bool | None, folders: dict[str, Path], source: Path) -> None:
    out = source.with_name("out.h5ad")
    call = ["embed", *given, str(source), "--model", str(folders["tiny"]), "--out", str(out), "--device", "cpu"]
    assert main(call) == 0
    expected = scfm.model.load(folders["tiny"]).embed(source, use_raw=wanted, device="cpu")
    np.testing.assert_array_equal(ad.read_h5ad(out).obsm["X_transcriptformer"], expected)


def test_warnings_of_a_process_are_single_lines(folders: dict[str, Path], source: Path) -> None:
    adata = ad.read_h5ad(source)
    adata.X = sparse.csr_matrix(np.ones((N_OBS, N_GENES), np.float32) * (np.arange(N_OBS) > 1)[:, None])
    adata.write_h5ad(source)
    command = [sys.executable, "-m", "scfm", "embed", str(source), f"--checkpoint_path={folders['tiny']}"]
    out = source.with_name("out.h5ad")
    command += ["--out", str(out), "--min-expressed-genes=1", "--filter-outliers", "9"]
    env = {**os.environ, "SCFM_DEVICE": "cpu", "SCFM_VERBOSITY": "warning", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("embed:")]
    assert (done.returncode, len(lines)) == (0, 2), done.stderr
    assert done.stdout == f"wrote {out}\n"
    assert "X_transcriptformer" in ad.read_h5ad(out).obsm
    assert lines[0].startswith("scfm: warning: 2 of 9 cells were left out by the options filter_outliers")
    assert lines[1].startswith("scfm: warning: 7 of 9 cells express more than the 29 genes that the model takes")
    assert "--gene-order='expression' keeps those with the highest counts" in lines[1]


@pytest.mark.filterwarnings("ignore:.*cells hold no gene of the model", "ignore:Variable names are not unique")
@pytest.mark.parametrize("name", ["transcriptformer", "esm2ce", "scfm-mini"])
def test_states_of_genes_are_the_same_however_they_come(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = scfm.model.load(name) if name == "scfm-mini" else scfm.model.load(folders["tiny"], family=name)
    known = model.vocabulary.genes[:N_GENES].tolist()
    x = np.hstack([anndata().X.toarray(), np.ones((N_OBS, 2), np.float32)])
    x[2], x[:, 5] = 0, 0
    names = pd.Index(["b", "b", *(f"gene{i}" for i in range(2, 32))])
    adata = ad.AnnData(sparse.csr_matrix(x), var=pd.DataFrame({"ids": [*known, "other", known[1]]}, index=names))
    some = ["gene31", "gene7", "gene30", "b", "gene5", "gene7"]
    means = model.embed(adata, pooling="gene", gene_key="ids")
    for chosen, columns in ((None, list(range(32))), (some, [31, 7, 30, 0, 5, 7]), ("gene7", [7])):
        scfm.settings.batch_tokens = None
        first: Any = scfm.tl.gene_embeddings(adata, model, genes=chosen, gene_key="ids")
        scfm.settings.batch_tokens = 20
        second: Any = scfm.tl.gene_embeddings(adata, model, genes=chosen, gene_key="ids")
        path = scfm.tl.gene_embeddings(adata, model, genes=chosen, gene_key="ids", out=tmp_path / str(chosen)[:6])
        written = ad.read_zarr(path)
        states = dense_states(written)
        assert (first.X.dtype, states.shape) == ("float32", (N_OBS, len(columns), model.n_features))
        close(second.X, first.X)
        np.testing.assert_array_equal(second.X, written.X)
        for name in ("obs", "var"):
            pd.testing.assert_frame_equal(getattr(written, name), getattr(second, name))
        assert second.obs["cell"].cat.codes.is_monotonic_increasing
        seen: Any = ~np.isnan(states).all(axis=(0, 2))
        assert set(np.array(columns)[~seen]) == {5, 30} & set(columns)
        close(np.nanmean(states[:, seen], axis=0), means[columns][seen])
        assert np.isnan(means[columns][~seen]).all()
        assert np.isnan(states[2]).all()


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown": ({"clip_count": 3}, TypeError, "'clip_count' is no option .*'transcriptformer' takes .*clip_counts, .*pret"),
    "clip 0": ({"clip_counts": 0}, ValueError, "clip_counts=0 would cut all counts to nothing; .*or None for no limit"),
    "clip text": ({"clip_counts": "30"}, TypeError, "clip_counts must be float or None; got '30'"),
    "clip flag": ({"clip_counts": True}, TypeError, "clip_counts must be float or None; got True"),
    "scale": ({"normalize_to_scale": -1}, ValueError, "normalize_to_scale=-1 is out of range"),
    "outliers": ({"filter_outliers": None}, TypeError, "filter_outliers must be float; got None"),
    "outliers NaN": ({"filter_outliers": np.nan}, ValueError, "filter_outliers=nan is out of range"),
    "genes": ({"min_expressed_genes": np.inf}, TypeError, "min_expressed_genes must be int; got inf"),
    "seed": ({"seed": 1.5}, TypeError, "seed must be int; got 1.5"),
    "huge seed": ({"seed": 2**63}, ValueError, r"is not below 2\*\*63"),
    "order": ({"gene_order": "name"}, ValueError, "'name' is not known; use 'input', 'vocabulary' or 'expression'"),
    "two": ({"sort_genes": True, "randomize_genes": True}, ValueError, "randomize_genes=True and sort_genes=True ask for"),
    "sorted": ({"sort_genes": True, "gene_order": "vocabulary"}, ValueError, "='vocabulary' and sort_genes=True ask"),
    "shuffled": ({"randomize_genes": True, "gene_order": "expression"}, ValueError, "'expression' and randomize_genes="),
    "no file": ({"pretrained_embedding": []}, ValueError, "pretrained_embedding names no file; leave it None"),
    "pooling": ({"pooling": "mean"}, ValueError, "pooling='mean' is not known to tiny; use one of 'cell', 'gene'"),
    "tokens": ({"max_tokens": 31}, ValueError, "max_tokens=31 is out of range: tiny takes 3 to 30 tokens"),
    "layer": ({"hidden_layer": -3}, ValueError, "hidden_layer=-3 does not exist: .*down to -2 for the input"),
    "groups": ({"groupby": "assay"}, ValueError, "groupby='assay' averages genes .* takes pooling='gene'"),
    "column": ({"groupby": "no", "pooling": "gene"}, KeyError, "groupby='no' is not a column of obs; found .*'assay'"),
    "no group": ({"groupby": "empty", "pooling": "gene"}, ValueError, "groupby='empty'"),
    "no gene": ({"gene_key": "index"}, ValueError, "No gene .*: var_names holds gene symb.*The model expects human Ensembl"),
    "ids": ({"compat": "upstream"}, KeyError, r"ids from var\['ensembl_id'\], which is missing; found .*gene_key=, 'index'"),
    "compat": ({"compat": "legacy"}, ValueError, "compat='legacy' is not known"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ERRORS)
def test_an_argument_that_is_wrong(kind: str, folders: dict[str, Path]) -> None:
    arguments, error, match = ERRORS[kind]
    adata = anndata()
    adata.obs["empty"] = np.nan
    with pytest.raises(error, match=match):
        scfm.tl.embed(adata, folders["tiny"], **arguments)
    assert not list(adata.obsm) + list(adata.varm) + list(adata.uns)


@pytest.mark.parametrize("name", ["geneformer", "tiny", "scfm-mini"])
def test_a_family_without_scores(name: str, folders: dict[str, Path]) -> None:
    adata, model = anndata(), scfm.model.load(folders.get(name, name), family="esm2ce" if name == "tiny" else None)
    with pytest.raises(
        TypeError, match=rf"^{name}.* has no likelihood; models of these families have: transcriptformer"
    ):
        scfm.tl.score(adata, model)
    assert list(adata.obs) == ["assay", "note"]


@pytest.mark.parametrize("name", ["clip", "pooling", "hidden_layer"])
def test_an_argument_that_scores_do_not_have(name: str, folders: dict[str, Path], source: Path) -> None:
    given: dict[str, Any] = {name: 0}
    with pytest.raises(TypeError, match=f"'{name}' is no option"):
        scfm.tl.score(anndata(), folders["tiny"], **given)
    with pytest.raises(ValueError, match=r"tl.score does not change the file .*a.h5ad. Give out="):
        scfm.tl.score(source, folders["tiny"])


OUTPUTS: dict[str, tuple[str, dict[str, Any], type[BaseException], str]] = {
    "exists": ("group", {}, FileExistsError, "group exists already; choose another name, or .*overwrite=True"),
    "file": ("a.h5ad", {"overwrite": True}, FileExistsError, "a.h5ad is a file, and a folder is going to be written"),
    "folder": ("folder", {"overwrite": True}, FileExistsError, "folder is a folder of something else"),
    "nowhere": ("no/out", {}, FileNotFoundError, "There is no folder .*no"),
    "gene": ("out", {"genes": ["gene1", "gene99"]}, KeyError, "1 genes are not in the data by any of their names, such as 'gene99'; close to it: 'gene9'.*'gene0'"),
    "option": ("out", {"clip_count": 3}, TypeError, "'clip_count' is no option"),
    "pooling": ("out", {"pooling": "cell"}, TypeError, "'pooling' is no option"),
    "broken": ("out", {}, RuntimeError, "disk full"),
    "interrupted": ("out", {}, KeyboardInterrupt, "disk full"),
    "interrupted again": ("group", {"overwrite": True}, KeyboardInterrupt, "disk full"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OUTPUTS)
def test_states_that_cannot_be_written(
    kind: str, folders: dict[str, Path], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, arguments, error, match = OUTPUTS[kind]
    group = scfm.tl.gene_embeddings(source, folders["tiny"], out=source.with_name("group"))
    source.with_name("folder").mkdir()
    (source.with_name("folder") / "mine").touch()
    before = sorted((path, path.stat().st_mtime_ns) for path in source.parent.rglob("*"))

    def fail(*_: Any) -> None:
        assert len(list(source.parent.iterdir())) == 4  # something is there already
        msg = "disk full"
        raise error(msg)

    if "interrupted" in kind or kind == "broken":
        monkeypatch.setattr(TranscriptFormer, "forward", fail)
    with pytest.raises(error, match=match):
        scfm.tl.gene_embeddings(source, folders["tiny"], out=source.parent / name, **arguments)
    assert sorted((path, path.stat().st_mtime_ns) for path in source.parent.rglob("*")) == before
    monkeypatch.undo()
    old = ad.read_zarr(group).X
    scfm.tl.gene_embeddings(source, folders["tiny"], clip_counts=1, out=group, overwrite=True)
    assert not np.array_equal(ad.read_zarr(group).X, old)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_results_survive_a_file(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    adata, model = anndata(MOUSE), scfm.model.load(folders["tiny"])
    options: dict[str, Any] = {"pretrained_embedding": [folders["a"], folders["b"]], "clip_counts": None}
    scfm.tl.embed(adata, model, **options, min_expressed_genes=1)
    scfm.tl.embed(adata, model, **options, pooling="gene", groupby="assay", key_added="genes")
    adata.var["human"] = IDS
    scfm.tl.score(adata, model, gene_key="human")
    with ad.settings.override(zarr_write_format=3):
        getattr(adata, f"write_{kind}")(tmp_path / "a")
    found = getattr(ad, f"read_{kind}")(tmp_path / "a")
    assert plain(dict(found.uns)) == plain(dict(adata.uns))
    assert found.varm["genes"].shape == (N_GENES, 3, 8)
    np.testing.assert_array_equal(found.varm["genes"], adata.varm["genes"])
    np.testing.assert_array_equal(found.obsm["X_transcriptformer"], adata.obsm["X_transcriptformer"])
    np.testing.assert_array_equal(found.obs["transcriptformer_gene_llh"], adata.obs["transcriptformer_gene_llh"])
