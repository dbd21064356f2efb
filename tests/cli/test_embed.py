"""The command line: the file that comes out is the file that went in, with the embedding of the Python API."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from anndata.tests.helpers import assert_equal
from scipy import sparse

import scfm
from scfm.cli import main
from scfm.model.arguments import Arguments
from scfm.testing import write_geneformer
from tests.rounding import close

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*zarr v[23]:UserWarning",
    "ignore:Consolidated metadata:UserWarning",
    "ignore:From 0.4:FutureWarning",
    "ignore:Cannot join columns:UserWarning",
)

N_OBS, N_GENES = 9, 30
KINDS = ("h5ad", "dense h5ad", "h5mu", "zarr v2", "zarr v3", "mudata zarr")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return write_geneformer(folder, n_genes=N_GENES, n_layers=2, hidden_size=8, max_tokens=16)


def anndata(n_vars: int = N_GENES) -> ad.AnnData:
    """Something in every slot."""
    rng = np.random.default_rng(5)
    counts = sparse.csr_matrix(rng.poisson(1, (N_OBS, n_vars)).astype(np.float32) + np.eye(N_OBS, n_vars, dtype="f4"))
    obs = pd.DataFrame(
        {"batch": pd.Categorical(["b", "a", "b"] * 3), "n_counts": counts.sum(axis=1).A1, "note": list("abcdefghi")},
        index=pd.Index([f"cell-{i}" for i in range(N_OBS)], name="barcode"),
    )
    var = pd.DataFrame({"score": rng.random(n_vars)}, index=[f"ENSG{i:011d}" for i in range(1, n_vars + 1)])
    adata = ad.AnnData(counts, obs=obs, var=var, layers={"counts": counts.copy(), "half": counts / 2})
    adata.raw = adata.copy()
    adata.obsm["X_pca"] = rng.random((N_OBS, 2))
    adata.varm["PCs"] = rng.random((n_vars, 2))
    adata.obsp["distances"] = sparse.csr_matrix(rng.random((N_OBS, N_OBS)))
    adata.uns = {"colors": np.array(["red", "blue"]), "nested": {"a": {"b": 2.5}}}
    adata.uns["geneformer"] = {"params": {"function": "scfm.tl.embed"}}
    return adata


def written(kind: str, path: Path) -> tuple[Path, list[str]]:
    """Write the example as a file of some kind; give its path and the arguments that the kind needs."""
    adata = anndata()
    if kind == "dense h5ad":
        adata.X = adata.X.toarray()
    source = path / f"a.{kind.split()[0] if kind.startswith('zarr') else kind.split()[-1]}"
    if kind in ("h5mu", "mudata zarr"):
        mdata = md.MuData({"rna": adata, "adt": ad.AnnData(np.ones((N_OBS, 2), np.float32), obs=adata.obs[[]])})
        mdata.write_h5mu(source) if kind == "h5mu" else mdata.write_zarr(source)
        return source, ["--modality", "rna"]
    if "zarr" in kind:
        with ad.settings.override(zarr_write_format=int(kind[-1])):
            adata.write_zarr(source)
    else:
        adata.write_h5ad(source)
    return source, []


def read(path: Path) -> ad.AnnData:
    """Read what the arguments of :func:`written` point at."""
    if path.suffix == ".h5mu":
        return md.read_h5mu(path)["rna"]
    if path.suffix == ".zarr":
        return ad.read_zarr(path / "mod" / "rna" if (path / "mod").exists() else path)
    return ad.read_h5ad(path)


def check(found: ad.AnnData, original: ad.AnnData, wanted: np.ndarray, key: str | None = None) -> None:
    """The embedding is there, and everything else is as it was."""
    obsm, uns = (key, key) if key else ("X_geneformer", "geneformer")
    np.testing.assert_array_equal(found.obsm[obsm], wanted)
    assert found.obsm[obsm].dtype == np.float32
    params = found.uns[uns].pop("params")
    assert (params["model"], params["n_cells"], params["compat"]) == ("tiny", N_OBS, None)
    assert params["genes"]["matched"] == N_GENES
    assert found.obs_names.tolist() == [f"cell-{i}" for i in range(N_OBS)]
    del found.obsm[obsm], found.uns[uns]
    original.uns.pop(uns, None)
    assert_equal(found, original, exact=True)


def embed(source: Path, out: Path, model: Path, *more: str) -> int:
    return main(["embed", str(source), "--model", str(model), "--out", str(out), "--device", "cpu", *more])


@pytest.mark.parametrize("kind", KINDS)
def test_embed_adds_the_result_and_nothing_else(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, arguments = written(kind, tmp_path)
    wanted, original = scfm.model.load(folder).embed(anndata()), read(source)
    out = tmp_path / f"out{source.suffix}"
    assert embed(source, out, folder, *arguments) == 0
    printed = capsys.readouterr()
    assert printed.out == f"wrote {out}\n"
    assert f"added .obsm['X_geneformer'] and .uns['geneformer'] to {out}" in printed.err
    check(read(out), original, wanted)
    assert "X_geneformer" not in read(source).obsm
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, out.name])
    if source.suffix == ".h5mu":
        assert_equal(md.read_h5mu(out)["adt"], md.read_h5mu(source)["adt"], exact=True)


@pytest.mark.parametrize("kind", KINDS)
def test_embed_in_place(kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, arguments = written(kind, tmp_path)
    wanted, original = scfm.model.load(folder).embed(anndata()), read(source)
    assert embed(source, source, folder, *arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert embed(source, source, folder, "--key_added", "z", "--overwrite", *arguments) == 0
    assert embed(source, source, folder, "--key_added", "z", "--overwrite", *arguments) == 0  # replaces its own
    check(read(source), original, wanted, "z")
    assert list(tmp_path.iterdir()) == [source]


ARGUMENTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "pooling": (["--pooling", "mean", "--hidden_layer", "-2", "--max_tokens", "10"], {}),
    "layer": (["--layer", "counts"], {"layer": "counts"}),
    "raw": (["--use_raw", "true"], {"use_raw": True}),
    "compat": (["--compat", "upstream"], {"compat": "upstream"}),
    "dtype": (["--dtype", "bfloat16"], {"dtype": "bfloat16"}),
    "gene key": (["--gene_key", "index"], {"gene_key": "index"}),
}
ARGUMENTS["pooling"][1].update(pooling="mean", hidden_layer=-2, max_tokens=10)


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_arguments_mean_what_they_mean_in_python(kind: str, folder: Path, tmp_path: Path) -> None:
    given, arguments = ARGUMENTS[kind]
    source, _ = written("h5ad", tmp_path)
    result = scfm.model.load(folder).run(source, Arguments.of({"device": "cpu", **arguments}))
    assert embed(source, tmp_path / "out.h5ad", folder, *given) == 0
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(found.obsm["X_geneformer"], result.values)
    params = found.uns["geneformer"]["params"]
    for name, value in result.params.items():
        if not isinstance(value, dict):
            assert params[name] == value


@pytest.mark.parametrize("kind", ["h5ad", "zarr v3"])
def test_gene_means_go_to_varm(kind: str, folder: Path, tmp_path: Path) -> None:
    source, _ = written(kind, tmp_path)
    out = tmp_path / f"out{source.suffix}"
    assert embed(source, out, folder, "--pooling", "gene") == 0
    wanted = scfm.model.load(folder).embed(anndata(), pooling="gene")
    np.testing.assert_array_equal(read(out).varm["X_geneformer"], wanted)
    assert list(read(out).obsm) == ["X_pca"]


def test_existing_output_is_kept_without_overwrite(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = written("h5ad", tmp_path)
    out = tmp_path / "out.h5ad"
    out.write_text("mine")
    assert embed(source, out, folder) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert embed(source, out, folder, "--overwrite") == 0
    assert "X_geneformer" in ad.read_h5ad(out).obsm


ERRORS: dict[str, tuple[dict[str, str], list[str], str]] = {
    "source": ({"source": "nowhere.h5ad"}, [], "FileNotFoundError: There is no file"),
    "folder of out": ({"out": "no/out.h5ad"}, [], "FileNotFoundError: There is no folder"),
    "suffix": ({"out": "out.zarr"}, [], "ValueError: Cannot make out.zarr of a.h5ad"),
    "model": ({"model": "genefromer-v1-10m"}, [], "ValueError: .*Did you mean .*geneformer-v1-10m"),
    "layer": ({}, ["--layer", "raw_counts"], "ValueError: .*no layer 'raw_counts'. Its layers: 'counts', 'half'"),
    "gene key": ({}, ["--gene_key", "ids"], r"KeyError: --gene-key='ids' is not a column of var"),
    "modality": ({}, ["--modality", "rna"], "ValueError: --modality='rna' is for a MuData"),
    "device": ({}, ["--device", "cuda:99"], "ValueError: --device='cuda:99' cannot be used here"),
    "key": ({}, ["--key_added", "a/b"], "ValueError: --key-added='a/b' cannot be stored"),
    "tokens": ({}, ["--max_tokens", "17"], "ValueError: --max-tokens=17 is out of range"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_is_one_line_and_leaves_no_file(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places, arguments, match = ERRORS[kind]
    source, _ = written("h5ad", tmp_path)
    given = [tmp_path / places.get("source", source.name), tmp_path / places.get("out", "out.h5ad")]
    model = Path(places["model"]) if "model" in places else folder
    assert embed(*given, model, *arguments) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scfm: ")]
    assert len(lines) == 1
    assert re.match(f"scfm: {match}", lines[0])
    assert "Traceback" not in lines[0]
    assert list(tmp_path.iterdir()) == [source]
    with pytest.raises((ValueError, KeyError, OSError)):
        main(["--debug", "embed", str(given[0]), "--model", str(model), "--out", str(given[1]), *arguments])


@pytest.mark.parametrize("kind", ["h5ad", "zarr v3"])
@pytest.mark.parametrize("moment", ["reading", "writing", "replacing"])
def test_a_failure_leaves_no_files_and_the_old_output(
    kind: str, moment: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = written(kind, tmp_path)
    out = source.with_stem("out")
    shutil.copytree(source, out) if source.is_dir() else shutil.copyfile(source, out)

    def fail(*_: Any, **__: Any) -> None:
        msg = "disk full"
        raise OSError(msg)

    names = {"reading": "scfm.model.session.run", "writing": "scfm._write.fill", "replacing": "scfm._paths.sync"}
    monkeypatch.setattr(names[moment], fail)
    assert embed(source, out, folder, "--overwrite") == 1
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, out.name])
    assert_equal(read(out), read(source), exact=True)


def test_an_interruption_is_130(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = written("h5ad", tmp_path)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scfm._write.fill", interrupt)
    assert embed(source, tmp_path / "out.h5ad", folder) == 130
    assert list(tmp_path.iterdir()) == [source]


def test_a_private_file_stays_private(folder: Path, tmp_path: Path) -> None:
    source, _ = written("h5ad", tmp_path)
    source.chmod(0o600)
    for out in (tmp_path / "out.h5ad", source):
        assert embed(source, out, folder, "--overwrite") == 0
        assert oct(out.stat().st_mode & 0o777) == "0o600"


def test_a_matrix_by_columns_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata = anndata()
    adata.X = adata.X.tocsc()
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert embed(tmp_path / "a.h5ad", tmp_path / "out.h5ad", folder) == 1
    assert "stored by columns (CSC)" in capsys.readouterr().err
    assert not (tmp_path / "out.h5ad").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed"],
        ["fly"],
        ["embed", "a.h5ad", "--model", "scfm-mini"],
        ["embed", "a.h5ad", "--model", "scfm-mini", "--out", "b.h5ad", "--batch_sizes", "3"],
        ["embed", "a.h5ad", "--model", "scfm-mini", "--out", "b.h5ad", "--max_tokens", "many"],
        ["embed", "a.h5ad", "--model", "scfm-mini", "--out", "b.h5ad", "--compat", "legacy"],
        ["convert", "a"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("scfm: ")
    assert "--help` explains what can be given" in text
    assert len(text.splitlines()) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--version"])
    assert error.value.code in (None, 0)
    assert scfm.__version__ in capsys.readouterr().out


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in scfm.model.list_models().index)


def test_a_published_folder_without_its_dictionaries(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables, out = tmp_path / "tables", tmp_path / "out.h5ad"
    model = Path(shutil.copytree(folder, tmp_path / "alone" / "model"))
    tables.mkdir()
    for path in model.glob("*.pkl"):
        path.replace(tables / path.name)
    adata = scfm.datasets.synthetic(5, 50, genes_per_cell=9)
    adata.var_names = [f"ENSG{i:011d}" for i in range(1, 51)]
    adata.write_h5ad(tmp_path / "in.h5ad")
    call = ["embed", str(tmp_path / "in.h5ad"), "--model", str(model), "--out", str(out), "--device", "cpu"]
    assert main(call) == 1
    assert "Pass the folder or the files as --dictionaries of the command: token_dictionary" in capsys.readouterr().err
    assert main([*call, "--dictionaries", str(tables)]) == 0
    assert ad.read_h5ad(out).uns["geneformer"]["params"]["model"] == "model"


@pytest.mark.parametrize("dictionaries", [False, True])
def test_convert(dictionaries: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder
    if dictionaries:
        source = shutil.copytree(folder, tmp_path / "tiny", ignore=shutil.ignore_patterns("*.pkl"))
        assert main(["convert", str(source), "--out", str(tmp_path / "out")]) == 1
        assert "--dictionaries" in capsys.readouterr().err
    more = ["--dictionaries", str(folder)] if dictionaries else []
    assert main(["convert", str(source), "--out", str(tmp_path / "out"), *more]) == 0
    assert f"wrote {tmp_path / 'out'}" in capsys.readouterr().out
    found = scfm.model.load(tmp_path / "out").embed(anndata())
    np.testing.assert_array_equal(found, scfm.model.load(folder).embed(anndata()))
    assert main(["convert", str(source), "--out", str(tmp_path / "out"), *more]) == 1


def test_shared_genes(tmp_path: Path) -> None:
    cells = scfm.datasets.pbmc68k()[:20]
    cells.write_h5ad(tmp_path / "a.h5ad")
    cells[:, 100:].write_h5ad(tmp_path / "b.h5ad")
    cells[:, :300].write_h5ad(tmp_path / "c.h5ad")
    out = tmp_path / "out.h5ad"
    files = [str(tmp_path / "b.h5ad"), str(tmp_path / "c.h5ad")]
    call = ["embed", str(tmp_path / "a.h5ad"), "--model", "scfm-mini", "--device", "cpu", "--out", str(out)]
    assert main([*call, "--shared-with", *files]) == 0
    expected = scfm.model.load("scfm-mini").embed(cells[:, 100:300].copy(), device="cpu")
    close(ad.read_h5ad(out).obsm["X_scfm_mini"], expected)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")  # the files hold cells of the same names
def test_a_shell_may_write_a_pattern_out(folder: Path, tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(str(written("h5ad", tmp_path / name)[0]))
    out = tmp_path / "store.zarr"
    assert main(["embed-store", *files, "--model", str(folder), "--out", str(out)]) == 0
    assert ad.read_zarr(out).obs["file"].tolist() == [file for file in files for _ in range(N_OBS)]


def test_a_report_is_printed_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = written("h5ad", tmp_path)
    assert main(["match", str(source), "--model", str(folder)]) == 0
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count(f"{N_GENES} of {N_GENES} genes") == 1
