"""Every command: its help, a success that equals the Python API, and a failure in one line."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml

import scfm
from scfm.cli import main
from scfm.cli._commands import COMMANDS as CALLS
from scfm.cli._words import as_options, known_words
from scfm.testing import write_geneformer, write_transcriptformer
from tests.read.foreign import write_tenx

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = (
    "embed",
    "embed-store",
    "status",
    "merge",
    "tokenize",
    "gene-embeddings",
    "gene-context",
    "score",
    "marker-genes",
    "attention",
    "predict-genes",
    "perturb",
    "perturb-store",
    "annotate",
    "metrics",
    "evaluate",
    "match",
    "train",
    "predict",
    "pretrain",
    "models",
    "fetch",
    "convert",
    "cache",
    "cellxgene",
    "env",
)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    path = tmp_path / "cells.h5ad"
    adata = scfm.datasets.synthetic(30, 40, genes_per_cell=8)
    adata.var_names = [f"ENSG{i:011d}" for i in range(1, 41)]
    adata.write_h5ad(path)
    return path


def in_terminal(*arguments: str, cache: Path) -> tuple[int, str]:
    """Exit code and screen of a command in a pseudo-terminal of 100 columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    env = {**os.environ, "COLUMNS": "100", "TERM": "xterm", "SCFM_CACHE_DIR": str(cache)}
    call = [sys.executable, "-m", "scfm", *arguments]
    with subprocess.Popen(call, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as run:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    return run.returncode, shown.decode().replace("\r\n", "\n")


def test_all_commands_are_listed_with_what_they_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^    ([a-z-]+) +[A-Z]", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("spelling", ["-", "_"])
@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str, spelling: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as done:
        main([name.replace("-", spelling), "--help"])
    screen = capsys.readouterr().out
    assert done.value.code in (None, 0)
    assert f"scfm [options] {name}" in screen
    assert "--config" in screen
    assert max(map(len, screen.splitlines())) <= 100
    assert not re.search(r"``|:func:|Literal|\bdict\b|class '|null", screen)
    assert "--copy" not in screen


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_and_the_example_is_a_call(name: str) -> None:
    command = CALLS[name]
    assert [option.name for option in command.options() if not option.text] == []
    if command.example:
        first, asked, *words = shlex.split(command.example)
        assert (first, asked) == ("scfm", name)
        values = vars(command.parser().parse_args(known_words(words, command.flags())))
        assert all(values[name] for name in command.positional)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("choose another name, or pass overwrite=True.", "choose another name, or pass --overwrite."),
        ("Give out=, the file to write", "Give --out, the file to write"),
        ("max_tokens=17 is out of range", "--max-tokens=17 is out of range"),
        ("gene_key='ids' and (pooling=)", "--gene-key='ids' and (--pooling)"),
        ("no_pooling=3 and copy=True", "no_pooling=3 and copy=True"),
        (
            "scfm.tl.embed_store takes patterns; call scfm.pp.match_genes",
            "`scfm embed-store` takes patterns; call `scfm match`",
        ),
        ("call scfm.tl.embed(adata, model) first", "call scfm.tl.embed(adata, model) first"),
        ("what scfm.ontology.read_ontology returns", "what scfm.ontology.read_ontology returns"),
    ],
)
def test_errors_name_options_and_commands(text: str, shown: str) -> None:
    assert as_options(text, ["overwrite", "out", "max_tokens", "gene_key", "pooling"]) == shown


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("embed", "missing: DATA, --model, --out"),
        ("convert a", "missing: --out"),
        ("embed a.h5ad --modle m", "there is no option --modle m. Did you mean --model?"),
        ("embed a.h5ad --model m --out b.h5ad --max-tokens x", "--max-tokens x is not accepted; expected a whole number."),
        ("embed a.h5ad --model m --out b.h5ad --compat old", "--compat old is not accepted; expected upstream."),
        ("cache all", "ACTION all is not accepted; expected list or verify or prune."),
        ("embd a.h5ad", "there is no command embd. Did you mean embed?"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_told_in_two_lines(call: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(call.split())
    name = call.split()[0]
    asked = f"scfm {name} --help" if name in COMMANDS else "scfm --help"
    assert capsys.readouterr().err.splitlines() == [f"scfm: {text}", f"`{asked}` explains what can be given."]


def test_without_words_it_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr()
    assert "Embed the cells of a file" in shown.out
    assert not shown.err


def test_listing_loads_no_torch() -> None:
    code = (
        "import sys; from scfm.cli import main; main(['models'])\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'scanpy', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


FAILURES = [
    ["annotate", "no.h5ad", "--labels_key", "a", "--use_rep", "X_a", "--out", "b.h5ad"],
    ["attention", "no.h5ad", "--model", "scfm-mini", "--out", "b.h5ad"],
    ["attention", "no.h5ad", "--model", "scfm-mini", "--out", "b.h5ad", "--heads", "some"],
    ["cache", "list", "no"],
    ["cache", "prune", "no"],
    ["cellxgene", "--ids", "x"],
    ["convert", "no", "--out", "out"],
    ["embed", "no.h5ad", "--model", "scfm-mini", "--out", "b.h5ad"],
    ["embed-store", "no.h5ad", "--model", "scfm-mini", "--out", "b"],
    ["evaluate", "no.h5ad", "--models", "scfm-mini"],
    ["fetch"],
    ["fetch", "--dataset", "no-corpus"],
    ["fetch", "geneformer-v2-104m"],
    ["fetch", "no-model"],
    ["gene-context", "no.h5ad", "--model", "scfm-mini", "--out", "b.h5ad"],
    ["gene-embeddings", "no.h5ad", "--model", "scfm-mini", "--out", "b"],
    ["marker-genes", "no.h5ad", "--model", "scfm-mini", "--groupby", "a", "--out", "b.h5ad"],
    ["match", "no.h5ad", "--model", "scfm-mini"],
    ["merge", "no.zarr", "no.h5ad"],
    ["metrics", "no.h5ad", "--use_rep", "X_a", "--labels_key", "a"],
    ["predict", "no.h5ad", "--model", "no", "--out", "b.h5ad"],
    ["predict-genes", "no.h5ad", "--model", "scfm-mini", "--out", "b.h5ad", "--mask", "some"],
    ["score", "no.h5ad", "--model", "scfm-mini", "--out", "b.h5ad"],
    ["status", "no.zarr"],
    ["tokenize", "no.h5ad", "--model", "scfm-mini", "--out", "b"],
    ["train", "no.h5ad", "--model", "scfm-mini", "--labels-key", "a", "--out", "b"],
]


@pytest.mark.parametrize("call", FAILURES, ids=" ".join)
def test_a_failure_is_one_line(
    call: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(call) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scfm: ")]
    assert len(lines) == 1
    assert re.match(r"scfm: \w+Error: .+", lines[0])
    with pytest.raises(Exception, match=r".+"):
        main(["--debug", *call])


def test_match(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_geneformer(tmp_path / "model", n_genes=30)
    assert main(["match", str(cells), "--model", str(folder)]) == 0
    report = scfm.pp.match_genes(cells, folder)
    text = capsys.readouterr().out
    assert str(report) in text
    assert f"not matched: {', '.join(report.examples_unmatched)}" in text


def test_match_with_an_option_of_a_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_transcriptformer(tmp_path / "model")
    genes = scfm.model.load(folder).vocabulary.genes[[0, 1, 1]]
    adata = ad.AnnData(np.ones((2, 3), np.float32))
    adata.var["ensembl_id"] = genes
    adata.write_h5ad(tmp_path / "a.h5ad")
    call = ["match", str(tmp_path / "a.h5ad"), "--model", str(folder), "--compat", "upstream"]
    assert main(call) == 1
    assert "remove_duplicate_genes" in capsys.readouterr().err.replace("-", "_")
    assert main([*call, "--remove-duplicate-genes"]) == 0
    assert capsys.readouterr().out.startswith("2 of 3 genes")


def test_perturb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata = scfm.datasets.pbmc68k()[:6].copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    call = ["perturb", str(tmp_path / "cells.h5ad"), "--model", "scfm-mini", "--genes", "CD74", "CD74+HLA-DRA"]
    call += ["--kind", "overexpress", "--device", "cpu"]
    assert main([*call, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("6 cells, 12 sequences")
    assert main([*call, "--out", str(tmp_path / "out.h5ad")]) == 0
    scfm.tl.perturb(adata, "scfm-mini", genes=["CD74", ("CD74", "HLA-DRA")], kind="overexpress", device="cpu")
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(found.layers["perturb"].toarray(), adata.layers["perturb"].toarray())
    np.testing.assert_array_equal(found.obsm["perturb"], adata.obsm["perturb"])


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning", "ignore:Consolidated metadata:UserWarning")
def test_score(kind: str, cells: Path, tmp_path: Path) -> None:
    folder = write_transcriptformer(tmp_path / "model", n_genes=40)
    adata = ad.read_h5ad(cells)
    source, out = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    adata.write_zarr(source) if kind == "zarr" else adata.write_h5ad(source)
    call = ["score", str(source), "--model", str(folder), "--out", str(out), "--device", "cpu", "--clip-counts", "20"]
    assert main(call) == 0
    scfm.tl.score(adata, folder, device="cpu", clip_counts=20)
    found = ad.read_zarr(out) if kind == "zarr" else ad.read_h5ad(out)
    assert list(found.obs.columns) == list(adata.obs.columns)
    for column in ("transcriptformer_count_llh", "transcriptformer_gene_llh"):
        np.testing.assert_array_equal(found.obs[column], adata.obs[column])
    theirs, ours = (a.uns["transcriptformer_score"]["params"] for a in (found, adata))
    assert theirs["options"]["clip_counts"] == ours["options"]["clip_counts"] == 20
    assert main(call) == 1  # it is there already
    assert main([*call, "--overwrite"]) == 0


def test_embeddings_and_scores(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_transcriptformer(tmp_path / "model", n_genes=40), tmp_path / "out.h5ad"
    call = ["embed", str(cells), "--out", str(out), "--device", "cpu", "--clip-counts", "20"]
    assert main([*call, "--model", str(folder), "--scores"]) == 0
    found, wanted = ad.read_h5ad(out), ad.read_h5ad(cells)
    scfm.tl.embed(wanted, folder, device="cpu", clip_counts=20)
    scfm.tl.score(wanted, folder, device="cpu", clip_counts=20)
    np.testing.assert_array_equal(found.obsm["X_transcriptformer"], wanted.obsm["X_transcriptformer"])
    np.testing.assert_array_equal(found.obs["transcriptformer_gene_llh"], wanted.obs["transcriptformer_gene_llh"])
    assert main([*call, "--overwrite", "--model", "scfm-mini", "--scores"]) == 1
    assert "--scores: scfm-mini has no likelihood" in capsys.readouterr().err


def test_embeddings_and_scores_of_one_genome(cells: Path, tmp_path: Path) -> None:
    folder, out, adata = (
        write_transcriptformer(tmp_path / "model", n_genes=40),
        tmp_path / "out.h5ad",
        ad.read_h5ad(cells),
    )
    adata.var["gene_ids"] = adata.var_names
    source = write_tenx(write_tenx(tmp_path / "a.h5", adata, "hg19"), adata[::-1].copy(), "mm10")
    call = ["embed", str(source), "--out", str(out), "--device", "cpu", "--model", str(folder), "--scores"]
    assert main([*call, "--modality", "hg19"]) == 0
    assert {"transcriptformer_gene_llh", "transcriptformer_count_llh"} <= set(ad.read_h5ad(out).obs)


def test_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    assert "no models" in capsys.readouterr().out
    made = write_geneformer(tmp_path / "made")
    folder = tmp_path / "cache" / "models" / "mine"
    assert main(["convert", str(made), "--out", str(folder)]) == 0
    (tmp_path / "cache" / "downloads").mkdir()
    (tmp_path / "cache" / "downloads" / "rest.part").write_bytes(bytes(100))
    capsys.readouterr()
    assert main(["cache", "list"]) == 0
    assert "mine" in capsys.readouterr().out
    table = scfm.model.list_cached()
    assert table.loc["mine", "path"] == str(folder)
    assert table.loc["mine", "bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert main(["cache", "verify"]) == 0
    assert "1 models are whole: mine" in capsys.readouterr().out
    with (folder / "vocabulary.tsv").open("a") as file:
        file.write(" ")
    assert main(["cache", "verify"]) == 1
    assert f"{folder}: " in capsys.readouterr().err
    assert main(["cache", "prune"]) == 0
    assert "removed 100 bytes" in capsys.readouterr().out
    assert folder.is_dir()
    assert main(["cache", "prune", "mine"]) == 0
    assert not folder.exists()


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert f"scfm: {scfm.__version__}" in text
    assert "devices: " in text
    assert f"settings.cache_dir: {scfm.settings.cache_dir}" in text


def test_fetch_prints_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "scfm-mini"]) == 0
    assert capsys.readouterr().out.strip() == str(scfm.model.fetch("scfm-mini"))


def test_options_from_a_file(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_geneformer(tmp_path / "model", n_genes=40), tmp_path / "out.h5ad"
    call = ["embed", str(cells), "--model", str(folder), "--out", str(out), "--max-tokens", "7", "--device", "cpu"]
    with pytest.raises(SystemExit):
        main([*call, "--print-config"])
    options: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    assert options["max_tokens"] == 7
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"max_tokens": 7, "device": "cpu", "model": str(folder)}))
    assert main(["embed", "--config", str(tmp_path / "run.yaml"), str(cells), "--out", str(out)]) == 0
    assert ad.read_h5ad(out).uns["geneformer"]["params"]["max_tokens"] == 7


BASH = """
source "$1"
_complete() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_scfm scfm "${!#}"; echo "${COMPREPLY[@]}"; }
_complete scfm em
_complete scfm embed --max-
"""


def test_completion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--print_completion", "shtab-bash"])
    (tmp_path / "scfm.bash").write_text(capsys.readouterr().out)
    run = subprocess.run(
        ["bash", "-c", BASH, "-", str(tmp_path / "scfm.bash")], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["embed", "embed-store", "--max-tokens"]


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    run = subprocess.run(
        f"{sys.executable} -m scfm models | head -1", shell=True, capture_output=True, text=True, check=False
    )
    assert "parameters" in run.stdout
    assert run.stderr == ""


def test_a_failure_in_a_terminal(cells: Path, tmp_path: Path) -> None:
    code, screen = in_terminal("match", str(cells), "--model", "geneformer-v2-104", cache=tmp_path)
    assert code == 1
    assert "Did you mean 'geneformer-v2-104m'" in screen.replace("\n", "")
    assert "Traceback" not in screen


def test_a_bar_in_a_terminal(tmp_path: Path) -> None:
    source, out = str(tmp_path / "a.h5ad"), str(tmp_path / "b.h5ad")
    scfm.datasets.pbmc68k().write_h5ad(source)
    call = ("embed", source, "--model", "scfm-mini", "--out", out, "--device", "cpu")
    code, screen = in_terminal(*call, cache=tmp_path)
    assert code == 0
    assert re.search(r"700/700.*cell/s", screen)


def test_metrics_equal_the_python_api(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata = scfm.datasets.synthetic(60, 200, genes_per_cell=20)
    rng = np.random.default_rng(0)
    adata.obs["type"], adata.obs["batch"] = np.repeat(["a", "b", "c"], 20), rng.choice(["x", "y"], 60)
    for name, spread in (("X_good", 9), ("X_bad", 1)):
        adata.obsm[name] = np.repeat(np.eye(3), 20, axis=0) * spread + rng.normal(size=(60, 3))
    adata.write_h5ad(tmp_path / "a.h5ad")
    command = ["metrics", str(tmp_path / "a.h5ad"), "--use_rep", "X_good", "X_bad", "--labels_key", "type"]
    assert main([*command, "--batch_key", "batch", "--out", str(tmp_path / "out.csv")]) == 0
    assert "avg_batch" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out.csv", index_col="score")
    for name in ("X_good", "X_bad"):
        scores = scfm.metrics.score_embedding(adata, name, labels_key="type", batch_key="batch")
        np.testing.assert_allclose(table[name], scores, rtol=1e-6)
    assert main([*command, "--use_rep", "X_none"]) == 1
    assert "There is no obsm['X_none']" in capsys.readouterr().err


def test_evaluate_equals_the_python_api(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata = scfm.datasets.pbmc68k()
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for number, path in enumerate(paths):
        adata[number * 80 : number * 80 + 80].write_h5ad(path)
    out = tmp_path / "out.csv"
    command = ["evaluate", *map(str, paths), "--models", "scfm-mini", "--labels-key", "bulk_labels", "--out", str(out)]
    assert main([*command, "--random-weights", "false"]) == 0
    assert "PCA" in capsys.readouterr().out
    expected = scfm.tl.evaluate(paths, "scfm-mini", labels_key="bulk_labels", random_weights=False)
    pd.testing.assert_frame_equal(pd.read_csv(out, index_col="file"), expected)
