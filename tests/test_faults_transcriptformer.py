"""Folders, files and arguments of TranscriptFormer that are wrong: a clear error, nothing run and nothing left over."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch

import scfm
from scfm.testing import write_geneformer, write_transcriptformer
from scfm.weights.gene_vectors import write_gene_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scfm.model import FoundationModel

N_GENES = 12
IDS = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]
WEIGHTS, ASSAYS, GENES = "model_weights.pt", "vocabs/assay_vocab.json", "vocabs/homo_sapiens_gene.h5"
SPECIALS = {"unknown": 0, "[PAD]": 1, "[START]": 2, "[END]": 3, "[RD]": 4, "[CELL]": 5, "[MASK]": 6}
LFS, PAGE = b"version https://git-lfs.github.com/spec/v1\n", b"\n<!DOCTYPE html>"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    published = write_transcriptformer(root / "published", n_genes=N_GENES, n_layers=2, embed_dim=8, gene_width=6)
    return {
        "published": published,
        "converted": scfm.model.convert(published, root / "converted"),
        "baseline": scfm.model.convert(published, root / "baseline", family="esm2ce"),
        "geneformer": write_geneformer(root / "geneformer", n_genes=N_GENES, n_layers=1, hidden_size=8),
        "converted geneformer": scfm.model.convert(root / "geneformer", root / "converted-geneformer"),
    }


@pytest.fixture
def folder_of(sources: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copy one of the sources, to be damaged."""
    return lambda kind: shutil.copytree(sources[kind], tmp_path / "model")


@pytest.fixture(scope="session")
def model(sources: dict[str, Path]) -> FoundationModel:
    return scfm.model.load(sources["published"])


def cells(genes: list[str] = IDS) -> ad.AnnData:
    values = np.random.default_rng(0).poisson(1, (5, len(genes))).astype(np.float32) + 1
    obs = pd.DataFrame({"empty": [np.nan] * 5}, index=pd.Index([f"cell{i}" for i in range(5)]))
    return ad.AnnData(values, obs=obs, var=pd.DataFrame({"ensembl_id": genes}, index=genes))


def change_json(path: Path, changes: dict[str, Any]) -> None:
    """Merge entries into a JSON object, sections into sections; ``...`` takes one out."""

    def merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
        for name, value in changes.items():
            if value is ...:
                del values[name]
            elif isinstance(value, dict) and value and isinstance(values.get(name), dict):
                merge(values[name], value)
            else:
                values[name] = value

    values = json.loads(path.read_text())
    merge(values, changes)
    path.write_text(json.dumps(values))


def refused(folder: Path, match: str, error: type[Exception] = ValueError, **arguments: Any) -> None:
    """Embedding with the model of a folder raises, and nothing is stored."""
    adata = cells()
    with pytest.raises(error, match=match):
        scfm.tl.embed(adata, folder, **arguments)
    assert not list(adata.obsm) + list(adata.uns)


def sizes(**changes: Any) -> dict[str, Any]:
    return {"model": {"model_config": changes}}


def data(**changes: Any) -> dict[str, Any]:
    return {"model": {"data_config": changes}}


NAMES = list(SPECIALS)
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": ...}, "fits 0 families; name one of .*'transcriptformer'"),
    "model list": ({"model": []}, "fits 0 families"),
    "no sizes": ({"model": {"model_config": ...}}, "fits 0 families"),
    "sizes null": ({"model": {"model_config": None}}, "lacks the section model.model_config"),
    "no data": ({"model": {"data_config": ...}}, "must list names under model.data_config.special_tokens, got None"),
    "data list": ({"model": {"data_config": [1]}}, "must list names under model.data_config.special_tokens, got None"),
    "loss": ({"model": {"loss_config": {"softplus_approx": "no"}}}, "softplus_approx must be true or false, got 'no'"),
    "missing": (sizes(embed_dim=...), "lacks embed_dim"),
    "text": (sizes(num_layers="2"), "num_layers must be a positive integer, got '2'"),
    "float": (sizes(embed_dim=8.0), "embed_dim must be a positive integer, got 8.0"),
    "flag": (sizes(seq_len=True), "seq_len must be a positive integer, got True"),
    "null": (sizes(gene_head_hidden_dim=None), "gene_head_hidden_dim must be a positive integer, got None"),
    "heads": (sizes(num_heads=3), "embed_dim 8 must be even and a multiple of num_heads 3"),
    "activation": (sizes(activation="relu"), "activation must be 'gelu', as in all published models; got 'relu'"),
    "link": (sizes(mu_link_fn="exp"), "mu_link_fn must be 'softmax'"),
    "cap": (sizes(softcap=-1), "softcap must be a number from 0 to below"),
    "bias": (sizes(attn_bias="yes"), "attn_bias must be true or false, got 'yes'"),
    "no biases": (sizes(attn_bias=True), "does not fit a TranscriptFormer of 2 layers. 8 missing"),
    "fewer layers": (sizes(num_layers=1), "does not fit a TranscriptFormer of 1 layers. 10 unexpected"),
    "more layers": (sizes(num_layers=3), "does not fit a TranscriptFormer of 3 layers. 10 missing"),
    "huge layers": (sizes(num_layers=10**9), "says 1,000,000,000 layers, but the state dict holds 41 tensors"),
    "wider": (sizes(embed_dim=16), r"33 tensors do not fit the model config: .* is \(8, 6\), expected \(16, 6\)"),
    "huge width": (sizes(embed_dim=10**12), "33 tensors do not fit"),
    "no specials": (data(special_tokens=...), "special_tokens, got None"),
    "specials numbers": (data(special_tokens=[0, 1]), r"special_tokens, got \[0, 1\]"),
    "specials empty": (data(special_tokens=[]), r"special_tokens, got \[\]"),
    "no start": (data(special_tokens=[n.replace("START", "BOS") for n in NAMES]), r"lacks the special tokens \['\[STA"),
    "specials twice": (data(special_tokens=[*NAMES[:6], "[RD]"]), "Tokens .6. are used for a gene and for a special"),
    "fewer specials": (data(special_tokens=NAMES[:6]), r"4 tensors do not fit .*is \(19, 6\), expected \(18, 6\)"),
    "no files": (data(esm2_mappings=...), "must list names under model.data_config.esm2_mappings, got None"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_does_not_fit(kind: str, folder_of: Callable[[str], Path]) -> None:
    changes, match = CONFIGS[kind]
    folder = folder_of("published")
    change_json(folder / "config.json", changes)
    refused(folder, match)


@pytest.mark.parametrize("kind", ["no model", "model list", "no sizes", "no data"])
def test_a_config_without_its_sections_when_the_family_is_named(kind: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("published")
    change_json(folder / "config.json", CONFIGS[kind][0])
    with pytest.raises(ValueError, match="config"):
        scfm.model.load(folder, family="transcriptformer")


@pytest.mark.parametrize("kind", ["published", "converted"])
def test_a_huge_number_of_layers_takes_little_memory(kind: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(kind)
    name, changes = "card.json", {"architecture": {"n_layers": 10**7}}
    if kind == "published":
        name, changes = "config.json", sizes(num_layers=10**7)
    change_json(folder / name, changes)
    tracemalloc.start()
    with pytest.raises(ValueError, match="10,000,000 layers, but the state dict holds 41 tensors"):
        scfm.model.load(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20


FILES: dict[str, tuple[str, bytes | None, type[Exception], str]] = {
    "config lfs": ("config.json", LFS, ValueError, "config.json is no valid JSON"),
    "config page": ("config.json", PAGE, ValueError, "config.json is no valid JSON.*web page"),
    "weights missing": (WEIGHTS, None, FileNotFoundError, "holds no weights; expected .*model_weights.pt"),
    "weights empty": (WEIGHTS, b"", ValueError, "model_weights.pt was refused.*cut off"),
    "weights lfs": (WEIGHTS, LFS, ValueError, "model_weights.pt is a git-lfs pointer.*git lfs pull"),
    "weights page": (WEIGHTS, PAGE, ValueError, "model_weights.pt is a web page.*fetch the file again"),
    "assays missing": (ASSAYS, None, FileNotFoundError, "vocabs lacks assay_vocab.json, the assays of the model"),
    "assays empty": (ASSAYS, b"", ValueError, "assay_vocab.json is no valid JSON"),
    "assays cut": (ASSAYS, b'{"unknown": 0', ValueError, "assay_vocab.json is no valid JSON.*cut off"),
    "assays page": (ASSAYS, PAGE, ValueError, "assay_vocab.json is no valid JSON.*web page"),
    "no unknown assay": (ASSAYS, b'{"a": 0}', ValueError, "must give an id .*to every assay, 'unknown' among them"),
    "assays text": (ASSAYS, b'{"unknown": "0"}', ValueError, "must give an id from 0 on to every assay"),
    "assays negative": (ASSAYS, b'{"unknown": 0, "a": -1}', ValueError, "must give an id from 0 on"),
    "assays huge": (ASSAYS, b'{"unknown": 0, "a": 1000000000}', ValueError, "must give an id from 0 on"),
    "fewer assays": (ASSAYS, b'{"unknown": 0}', ValueError, r"aux_embeddings.assay.weight is \(3, 8\), expected \(1, 8\)"),
    "genes missing": (GENES, None, FileNotFoundError, "no homo_sapiens_gene.h5 in .*vocabs.*as dictionaries="),
    "genes empty": (GENES, b"", ValueError, "homo_sapiens_gene.h5 is no HDF5 file"),
    "genes lfs": (GENES, LFS, ValueError, "homo_sapiens_gene.h5 is a git-lfs pointer"),
    "genes page": (GENES, PAGE, ValueError, "homo_sapiens_gene.h5 is a web page"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_missing_or_another(kind: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    name, content, error, match = FILES[kind]
    folder = folder_of("published")
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    refused(folder, match, error)
    with pytest.raises(error, match=match):
        scfm.model.convert(folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("name", [WEIGHTS, GENES])
@pytest.mark.parametrize("left", [100, 3000, -3000, -1])
def test_a_file_that_is_cut_off(left: int, name: str, folder_of: Callable[[str], Path]) -> None:
    path = folder_of("published") / name
    path.write_bytes(path.read_bytes()[:left])
    refused(path.parents[name.count("/")], f"{path.name} (was refused|is no readable|is no HDF5).*cut off|again")


def without(name: str, rows: slice | None = None) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        kept = file[name][rows] if rows is not None else None
        del file[name]
        if kept is not None:
            file[name] = kept

    return change


def renamed(file: h5py.File) -> None:
    keys = file["keys"][:]
    del file["keys"]
    file["keys"] = np.array(["ENSG99", *keys[1:].astype(str)], dtype="S")


VOCABULARIES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "no keys": (without("keys"), "homo_sapiens_gene.h5 has no /keys"),
    "no arrays": (without("arrays"), "homo_sapiens_gene.h5 has no /arrays"),
    "some keys": (without("keys", slice(8)), r"4 tensors do not fit .*is \(19, 6\), expected \(15, 6\)"),
    "another key": (renamed, "has no /arrays/ENSG99"),
    "matrix": (lambda file: (without("keys")(file), file.__setitem__("keys", np.ones((2, 2))))[0], "keys has shape"),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_gene_names_that_do_not_fit(kind: str, folder_of: Callable[[str], Path]) -> None:
    change, match = VOCABULARIES[kind]
    folder = folder_of("published")
    with h5py.File(folder / GENES, "r+") as file:
        change(file)
    refused(folder, match)


TABLE, LAYER = "gene_embeddings.embedding.weight", "gene_embeddings.mlp.layers.0.weight"
TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"mu.mlp.layers.0.weight": ...}, "of 2 layers. 1 missing: mu.mlp.layers.0.weight"),
    "unexpected": ({"head.weight": torch.ones(2)}, "of 2 layers. 1 unexpected: head.weight"),
    "shape": ({"gene_id_head.layers.0.bias": torch.ones(3)}, r"gene_id_head.layers.0.bias is \(3,\), expected \(10,\)"),
    "table": ({TABLE: torch.ones(18, 6)}, r"embedding.weight is \(18, 6\), expected \(19, 6\)"),
    "width": ({TABLE: torch.ones(19, 5)}, r"embedding.weight is \(19, 5\), expected \(19, 6\)"),
    "integers": ({LAYER: torch.ones(8, 6, dtype=torch.int32)}, r"is \(8, 6\) of torch.int32, expected \(8, 6\)"),
    "integer table": ({TABLE: torch.ones(19, 6, dtype=torch.int32)}, "embedding.weight.* torch.int32"),
    "no tensor": ({"a": [1, 2]}, "holds no plain state dict of tensors"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_weights_that_do_not_fit(kind: str, folder_of: Callable[[str], Path]) -> None:
    changes, match = TENSORS[kind]
    folder = folder_of("published")
    tensors = torch.load(folder / WEIGHTS, weights_only=True) | changes
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not ...}, folder / WEIGHTS)
    refused(folder, match)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [lambda x, path: path.write_bytes(pickle.dumps(x)), torch.save], ids=["pickle", "zip"])
def test_code_in_the_weights_is_not_run(save: Any, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folder_of("published")
    save({"a": torch.ones(2), "b": Touch(tmp_path / "touched")}, folder / WEIGHTS)
    for use in (scfm.model.load, lambda path: scfm.model.convert(path, tmp_path / "out")):
        with pytest.raises(ValueError, match="model_weights.pt was refused .*or holds more than tensors"):
            use(folder)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "tiny/../../out.txt", "other/out.txt", "lfs", "page"])
def test_archives_that_are_refused(name: str, mode: Any, sources: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    if name in ("lfs", "page"):
        path.write_bytes(LFS if name == "lfs" else PAGE)
    else:
        with tarfile.open(path, mode) as tar:
            tar.add(sources["published"], "tiny")
            member = tarfile.TarInfo(name)
            tar.addfile(member)
    with pytest.raises(ValueError, match="git-lfs pointer|web page|was refused, nothing of it was written: its member"):
        scfm.model.convert(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]
    assert not any(place.exists() for place in (tmp_path.with_name("out.txt"), Path("/tmp/out.txt")))


CARDS: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"aux_tokens": ...}, "lacks .*an assay 'unknown': convert the model again"),
    "no assays": ({"aux_tokens": {}}, "lacks .*an assay 'unknown'"),
    "labels list": ({"aux_tokens": []}, r"aux_tokens is \[\], which a card cannot hold"),
    "labels null": ({"aux_tokens": None}, "aux_tokens is None, which a card cannot hold"),
    "assays list": ({"aux_tokens": {"assay": []}}, "aux_tokens is {'assay': ..}, which a card cannot hold"),
    "text": ({"aux_tokens": {"assay": {"unknown": "0"}}}, "aux_tokens is .*which a card cannot hold"),
    "fraction": ({"aux_tokens": {"assay": {"unknown": 0.5}}}, "aux_tokens is .*which a card cannot hold"),
    "no unknown": ({"aux_tokens": {"assay": {"unknown": ...}}}, "lacks .*an assay 'unknown'"),
    "large": ({"aux_tokens": {"assay": {"a": 3}}}, "Assay ids of published are not all below 3, the rows of its table"),
    "negative": ({"aux_tokens": {"assay": {"a": -1}}}, "Assay ids of published are not all below 3"),
    "no start": ({"special_tokens": {"[START]": ...}}, r"lacks the special tokens \['\[START\]'\]"),
    "specials null": ({"special_tokens": None}, "special_tokens is None, which a card cannot hold"),
    "clash": ({"special_tokens": {"[START]": 8}}, r"Tokens \[8\] are used for a gene and for a special token"),
    "far": ({"special_tokens": {"[START]": 500}}, "The vocabulary has 501 tokens, the weights 19"),
    "tokens": ({"max_tokens": 1000}, "max_tokens"),
    "size": (
        {"architecture": {"n_experts": 3}},
        "not that of the family 'transcriptformer' .*'n_experts'.*convert it again",
    ),
    "hash": ({"weights_sha256": "00"}, "model.safetensors has sha256 .*, expected 00: it is damaged"),
    "family": ({"family": "scgpt"}, "family='scgpt' is not known; the families are esm2ce, geneformer"),
}


@pytest.mark.parametrize("kind", CARDS)
def test_a_damaged_card(kind: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("converted")
    change_json(folder / "card.json", CARDS[kind][0])
    refused(folder, CARDS[kind][1])


FAMILIES: dict[tuple[str, str], str] = {
    ("converted", "geneformer"): "holds a model of the family 'transcriptformer', which 'geneformer' cannot take",
    ("published", "geneformer"): "config lacks vocab_size, hidden_size",
    ("baseline", "transcriptformer"): "holds a model of the family 'esm2ce', which 'transcriptformer' cannot take",
    ("converted geneformer", "esm2ce"): "holds a model of the family 'geneformer', which 'esm2ce' cannot take",
    ("geneformer", "transcriptformer"): "config",
    ("geneformer", "esm2ce"): "config",
    ("published", "bert"): "family='bert' is not known; the families are esm2ce, geneformer",
}


@pytest.mark.parametrize("pair", FAMILIES, ids=" as ".join)
def test_a_wrong_family(pair: tuple[str, str], sources: dict[str, Path]) -> None:
    assert scfm.model.load(sources["baseline"]).family == "esm2ce"
    with pytest.raises(ValueError, match=FAMILIES[pair]):
        scfm.model.load(sources[pair[0]], family=pair[1])


def test_other_genes_that_do_not_fit(model: FoundationModel, tmp_path: Path) -> None:
    mouse = [f"ENSMUSG{i:011d}" for i in range(1, 31)]
    rng = np.random.default_rng(1)
    fitting = write_gene_vectors(tmp_path / "fitting.h5", mouse, rng.standard_normal((30, 6)))
    wide = write_gene_vectors(tmp_path / "wide.h5", mouse, rng.standard_normal((30, 7)))
    adata = cells(mouse)
    for given, error, match in (
        (wide, ValueError, "wide.h5 holds vectors of 7 features, but published was made for 6: .*same protein model"),
        ([fitting, wide], ValueError, "vectors of the files differ in length: .*'fitting.h5': 6, 'wide.h5': 7"),
        (tmp_path / "no.h5", FileNotFoundError, "There is no file .*no.h5"),
        (tmp_path, ValueError, "is a folder, not a file of gene vectors"),
    ):
        with pytest.raises(error, match=match):
            model.embed(adata, pretrained_embedding=given)
    with pytest.raises(ValueError, match="heads of the model know the genes of its checkpoint only.*compat='upstream'"):
        scfm.tl.score(adata, model, pretrained_embedding=fitting)
    with pytest.raises(ValueError, match="genes have tokens beyond the 19 that the heads of the model know"):
        scfm.tl.score(adata, model, pretrained_embedding=fitting, compat="upstream")
    assert list(adata.obs) == ["empty"]


def test_bad_gene_vectors_leave_no_store(model: FoundationModel, tmp_path: Path) -> None:
    mouse = [f"ENSMUSG{i:011d}" for i in range(1, 31)]
    path = write_gene_vectors(tmp_path / "bad.h5", mouse, np.ones((30, 6)))
    with h5py.File(path, "r+") as file:
        file[f"arrays/{mouse[3]}"][2] = np.nan
    cells(mouse).write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match="not finite"):
        scfm.tl.embed_store(tmp_path / "cells.h5ad", model, tmp_path / "store.zarr", pretrained_embedding=path)
    assert not (tmp_path / "store.zarr").exists()


def test_the_genes_that_are_expected_are_not_called_human(model: FoundationModel, tmp_path: Path) -> None:
    path = write_gene_vectors(tmp_path / "mouse.h5", ["ENSMUSG00000000001", "ENSMUSG00000000002"], np.ones((2, 6)))
    with pytest.raises(ValueError, match=r"No gene .* is known to .*ENSMUSG00000000001") as error:
        model.embed(cells(), pretrained_embedding=path)
    assert "human" not in str(error.value).partition("The model expects")[2]


def test_the_scores_of_an_empty_cell_are_said_to_be_missing(model: FoundationModel) -> None:
    adata = cells()
    adata.X[1] = 0
    with pytest.warns(UserWarning, match="1 of 5 cells hold no gene of the model; .* NaN"):
        scfm.tl.score(adata, model)
    missing = adata.obs[["transcriptformer_count_llh", "transcriptformer_gene_llh"]].isna().all(axis=1)
    assert missing.tolist() == [False, True, False, False, False]
