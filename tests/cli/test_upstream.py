"""Command lines of transcriptformer, as its README has them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.cli import main
from scfm.cli._upstream import from_upstream
from scfm.cli._words import WrongCall
from scfm.testing import write_transcriptformer
from scfm.weights.gene_vectors import write_gene_vectors

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning", "ignore:Consolidated metadata:UserWarning")
N_GENES = 30
MODEL, DATA = "./checkpoints/tf_sapiens", "test/data/human_val.h5ad"
START = f"--checkpoint-path {MODEL} --data-file {DATA}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the README assumes."""
    monkeypatch.chdir(tmp_path)
    scfm.settings.device = "cpu"
    model = write_transcriptformer(tmp_path / MODEL, n_genes=N_GENES, embed_dim=8, gene_width=6, seq_len=29)
    genes = scfm.model.load(model).vocabulary.genes[:N_GENES].tolist()
    (tmp_path / DATA).parent.mkdir(parents=True)
    mouse = [f"ENSMUSG{i:011d}" for i in range(1, N_GENES + 1)]
    for name, ids in (("human", genes), ("mouse", mouse)):
        adata = scfm.datasets.synthetic(5, N_GENES, genes_per_cell=6)
        adata.var["ensembl_id"] = ids
        adata.var_names = [str(i) for i in range(N_GENES)]
        adata.obs["cell_type"] = "B"
        adata.write_h5ad(tmp_path / DATA.replace("human", name))
    (tmp_path / "checkpoints/all_embeddings").mkdir()
    vectors = np.random.default_rng(0).standard_normal((N_GENES, 6))
    write_gene_vectors(tmp_path / "checkpoints/all_embeddings/mus_musculus_gene.h5", mouse, vectors)
    return tmp_path


README: dict[str, tuple[str, dict[str, Any]]] = {
    "basic": (f"{START} --output-path ./inference_results --batch-size 8", {}),
    "esm2ce": (f"{START} --model-type esm2ce --batch-size 8", {}),
    "another species": (
        f"--checkpoint-path {MODEL} --data-file test/data/mouse_val.h5ad --pretrained-embedding "
        "./checkpoints/all_embeddings/mus_musculus_gene.h5 --batch-size 8",
        {"pretrained_embedding": "checkpoints/all_embeddings/mus_musculus_gene.h5"},
    ),
    "out of memory": (f"{START} --oom-dataloader --n-data-workers 4", {}),
    "overrides": (
        f"{START} --config-override model.data_config.normalize_to_scale=10000 "
        "--config-override model.inference_config.obs_keys.0=cell_type",
        {"normalize_to_scale": 10_000},
    ),
    "layer": (f"{START} --embedding-layer-index -2", {"hidden_layer": -1}),
    "last layer": (f"{START} --embedding-layer-index=-1 --num-gpus -1 --precision 32 --device auto", {}),
    "others": (
        f"{START} --gene-col-name ensembl_id --clip-counts 20 --filter-to-vocabs --use-raw auto --emb-type cell --num-gpus 1",
        {"clip_counts": 20},
    ),
}


@pytest.mark.parametrize("kind", README)
def test_a_line_of_the_readme(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, options = README[kind]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["embed", *shlex.split(line)]) == 0
    (found,) = (folder / "inference_results").iterdir()
    assert found.name == "embeddings.h5ad"
    adata = ad.read_h5ad(found)
    family = "esm2ce" if kind == "esm2ce" else "transcriptformer"
    model = scfm.model.load(folder / MODEL, family=family)
    data = folder / DATA.replace("human", "mouse" if "pretrained" in line else "human")
    np.testing.assert_array_equal(adata.obsm[f"X_{family}"], model.embed(data, **options))
    assert list(adata.obs) == list(ad.read_h5ad(data).obs)


def test_states_of_genes(folder: Path) -> None:
    line = f"embed {START} --emb-type cge --output-filename cge_embeddings.h5ad --batch-size 8"
    assert main(shlex.split(line)) == 0
    assert main(["gene-embeddings", DATA, "--model", MODEL, "--out", "expected.zarr"]) == 0
    expected = folder / "expected.zarr"
    made = folder / "inference_results/cge_embeddings.zarr"
    names = sorted(path.relative_to(expected) for path in expected.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())


TRANSLATED = {
    "--num-gpus 4 --batch-size 32": "--device=cuda:0,cuda:1,cuda:2,cuda:3 --batch-size 32",
    "--num_gpus=-1": "--device=cuda:0,cuda:1",
    "--data-file a.h5ad --out b.h5ad": "a.h5ad --out b.h5ad",
    "--model m --data_file=a.h5ad --output-path=x/y --output-filename emb": "a.h5ad --out=x/y/emb.h5ad --model m",
    "a.h5ad --output-path x": "--out=x/embeddings.h5ad a.h5ad",
    "--config-override model.data_config.gene_col_name=id": "--gene-col-name=id",
    "--config-override model.inference_config.num_gpus=2": "--device=cuda:0,cuda:1",
    "a.h5ad --config-override model.inference_config.output_keys=[embeddings,llh]": "a.h5ad --scores",
    "a.h5ad --out b.h5ad -- --num-gpus 3": "a.h5ad --out b.h5ad -- --num-gpus 3",
}


@pytest.mark.parametrize("line", TRANSLATED)
def test_what_becomes_of_a_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert from_upstream("embed", shlex.split(line)) == ("embed", shlex.split(TRANSLATED[line]))


def test_other_commands_are_left_alone() -> None:
    assert from_upstream("metrics", ["--num-gpus", "3"]) == ("metrics", ["--num-gpus", "3"])


WRONG = {
    "--num-gpus all": "--num-gpus all is not a number",
    "--embedding-layer-index 3": "give --hidden-layer, which counts back from the last layer",
    "--emb-type both": "--emb-type both is not known",
    "--config-override clip_counts": "expected a name, = and a value",
    "--data-file": "--data-file takes a value",
    "--checkpoint-dir here": "SCFM_CACHE_DIR=here",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_line_that_has_no_counterpart(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WrongCall, match=".+") as caught:
        from_upstream("embed", shlex.split(line))
    assert WRONG[line] in str(caught.value)
    with pytest.raises(SystemExit, match="2"):
        main(["embed", *shlex.split(line)])
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"scfm: {caught.value}", "`scfm embed --help` explains what can be given."]


def test_an_override_that_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["embed", *shlex.split(f"{START} --config-override model.model_config.num_layers=3")])
    assert "--num-layers=3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("emb_layer", "'emb_layer' is no option of this call: it is called hidden_layer= here; 0 is the last layer"),
        ("batch_size", "'batch_size' is no option of this call: it is not needed: cells are packed by their length"),
        (
            "max_ncells",
            "'max_ncells' is no option of this call: it is not needed: all cells are embedded; to embed fewer, subset",
        ),
        ("nonsense", "'nonsense' is no option of this call, and the family 'scfm_mini' takes no options of its own."),
    ],
)
def test_the_same_advice_in_python(name: str, text: str) -> None:
    given: dict[str, Any] = {name: 3}
    with pytest.raises(TypeError) as caught:
        scfm.tl.embed(scfm.datasets.pbmc68k()[:3], "scfm-mini", **given)
    assert str(caught.value).startswith(text)
