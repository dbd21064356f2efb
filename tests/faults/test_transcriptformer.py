"""Files and arguments of TranscriptFormer that are wrong: a clear error, nothing run and nothing left over."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch

import scfm
from scfm.weights.gene_vectors import write_gene_vectors

from .faulty import LFS, PAGE, cells, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from scfm.model import FoundationModel

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS, ASSAYS, GENES = "model_weights.pt", "vocabs/assay_vocab.json", "vocabs/homo_sapiens_gene.h5"


@pytest.fixture(scope="session")
def model(sources: dict[str, Path]) -> FoundationModel:
    return scfm.model.load(sources["tf"])


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
    "genes empty": (GENES, b"", ValueError, "homo_sapiens_gene.h5 is not an HDF5 file"),
    "genes lfs": (GENES, LFS, ValueError, "homo_sapiens_gene.h5 is a git-lfs pointer"),
    "genes page": (GENES, PAGE, ValueError, "homo_sapiens_gene.h5 is a web page"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_missing_or_another(kind: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    name, content, error, match = FILES[kind]
    folder = folder_of("tf")
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    refused(folder, match, error)
    with pytest.raises(error, match=match):
        scfm.model.convert(folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("name", [WEIGHTS, GENES])
@pytest.mark.parametrize("left", [100, 3000, -3000, -1])
def test_a_file_that_is_cut_off(left: int, name: str, folder_of: Callable[[str], Path]) -> None:
    path = folder_of("tf") / name
    path.write_bytes(path.read_bytes()[:left])
    refused(path.parents[name.count("/")], f"{path.name} (was refused|is not a readable|is not an HDF5).*cut off|again")


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
    folder = folder_of("tf")
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
    folder = folder_of("tf")
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
    folder = folder_of("tf")
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
            tar.add(sources["tf"], "tiny")
            member = tarfile.TarInfo(name)
            tar.addfile(member)
    with pytest.raises(ValueError, match="git-lfs pointer|web page|was refused, nothing of it was written: its member"):
        scfm.model.convert(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]
    assert not any(place.exists() for place in (tmp_path.with_name("out.txt"), Path("/tmp/out.txt")))


def test_other_genes_that_do_not_fit(model: FoundationModel, tmp_path: Path) -> None:
    mouse = [f"ENSMUSG{i:011d}" for i in range(1, 31)]
    rng = np.random.default_rng(1)
    fitting = write_gene_vectors(tmp_path / "fitting.h5", mouse, rng.standard_normal((30, 6)))
    wide = write_gene_vectors(tmp_path / "wide.h5", mouse, rng.standard_normal((30, 7)))
    adata = cells(mouse)
    for given, error, match in (
        (wide, ValueError, "wide.h5 holds vectors of 7 features, but tf was made for 6: .*same protein model"),
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
    assert "human" not in str(error.value).partition("The model expects")[2].partition(".")[0]


def test_the_scores_of_an_empty_cell_are_said_to_be_missing(model: FoundationModel) -> None:
    adata = cells()
    adata.X[1] = 0
    with pytest.warns(UserWarning, match="1 of 5 cells hold no gene of the model; .* NaN"):
        scfm.tl.score(adata, model)
    missing = adata.obs[["transcriptformer_count_llh", "transcriptformer_gene_llh"]].isna().all(axis=1)
    assert missing.tolist() == [False, True, False, False, False]
