"""Converted models that are damaged, names of no model, and conversions that go wrong."""

from __future__ import annotations

import pickle
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import scfm
from scfm.genes import Vocabulary
from scfm.weights.tensors import open_tensors

from .faulty import cells, change_json, refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("position", [-1, -1000])
def test_a_changed_byte_of_the_weights(position: int, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("converted")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[position] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="model.safetensors has sha256 .* expected .* damaged .*convert it again"):
        scfm.model.load(folder)


@pytest.mark.parametrize("kind", ["published", "bin"])
def test_weights_that_are_not_finite_are_not_converted(
    kind: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folder_of(kind)
    found = open_tensors(next(folder.glob("*model.*")))
    tensors = {name: tensor.clone() for name, tensor in found.items()}  # the file is replaced
    name = next(name for name in tensors if "intermediate" in name)
    tensors[name][0] = float("nan")
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"The tensor {name} holds values that are not finite"):
        scfm.model.convert(folder, tmp_path / "out" / "made")
    assert not list((tmp_path / "out").iterdir())


VOCABULARIES: dict[str, tuple[str, str, str]] = {
    "a column": ("median", "mean", "The vocabulary has no medians, by which genes are ranked"),
    "token text": ("\t4\t", "\tx\t", "vocabulary.tsv"),
    "token fraction": ("\t4\t", "\t4.5\t", "vocabulary.tsv"),
    "token twice": ("\t5\t", "\t4\t", "tokens must increase"),
    "gene twice": ("ENSG00000000002", "ENSG00000000001", "Gene ids must be unique"),
    "huge token": ("\t15\t", "\t2000000000\t", "2,000,000,001 tokens, the weights 16: they do not belong together"),
    "page": ("gene\ttoken\tmedian\tsymbol\n", "<html>\n", "vocabulary.tsv"),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_damaged_vocabulary(kind: str, folder_of: Callable[[str], Path]) -> None:
    old, new, match = VOCABULARIES[kind]
    path = folder_of("converted") / "vocabulary.tsv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"vocabulary.tsv.* has sha256 .*, expected "):
        scfm.model.load(path.parent)
    change_json(path.with_name("card.json"), {"vocabulary_sha256": None})
    with pytest.raises(ValueError, match=match):
        scfm.model.load(path.parent)


@pytest.mark.parametrize("content", ["", "gene\ttoken\tmedian\tsymbol\n"])
def test_an_empty_vocabulary(content: str, folder_of: Callable[[str], Path]) -> None:
    path = folder_of("converted") / "vocabulary.tsv"
    path.write_text(content)
    change_json(path.with_name("card.json"), {"vocabulary_sha256": None})
    with pytest.raises(ValueError, match="vocabulary.tsv|0 genes"):
        scfm.model.load(path.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "vocabulary.tsv"])
def test_a_missing_file_of_a_converted_model(name: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("converted")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        scfm.model.load(folder)


UNKNOWN_NAMES: dict[str, tuple[str, type[Exception], str]] = {
    "misspelt": ("genefromer-v2-104m", ValueError, r"Did you mean .*'geneformer-v2-104m'.*list_models\(\)"),
    "unknown": ("zzz", ValueError, r"'zzz' is neither a model nor a folder.*list_models\(\)"),
    "no path": ("no/such/folder", FileNotFoundError, "There is no folder no/such/folder"),
    "not here": (
        "geneformer-v2-316m",
        FileNotFoundError,
        "not on this machine.*Geneformer-V2-316M.*scfm.model.convert",
    ),
    "alias": ("gf-18L-316M-i4096", FileNotFoundError, "geneformer-v2-316m is not on this machine"),
}


@pytest.mark.parametrize("kind", UNKNOWN_NAMES)
def test_a_name_that_is_no_model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, error, match = UNKNOWN_NAMES[kind]
    monkeypatch.setattr(scfm.settings, "cache_dir", tmp_path)
    refused(name, match, error)


def test_folders_that_hold_no_model(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds neither card.json .*nor config.json"):
        scfm.model.load(tmp_path)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        scfm.model.load(sources["published"] / "model.safetensors")
    with pytest.raises(ValueError, match="family='bert' is not known; the families are esm2ce, geneformer"):
        scfm.model.load(sources["published"], family="bert")
    with pytest.raises(ValueError, match="brings its own vocabulary: leave dictionaries= out"):
        scfm.model.load(sources["converted"], dictionaries=sources["published"])
    without = shutil.copytree(sources["published"], tmp_path / "a", ignore=shutil.ignore_patterns("model.*"))
    with pytest.raises(FileNotFoundError, match="holds no weights; expected model.safetensors or pytorch_model.bin"):
        scfm.model.load(without)


def test_a_registered_name_with_other_weights(sources: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sources["published"], tmp_path / "Geneformer-V2-104M")
    match = "sha256 .*but geneformer-v2-104m has fff5cba.*damaged, or these are other weights; then rename the folder"
    for use in (scfm.model.load, lambda source: scfm.model.convert(source, tmp_path / "out")):
        with pytest.raises(ValueError, match=match):
            use(folder)
    folder.rename(tmp_path / "mine")
    assert scfm.model.load(tmp_path / "mine").card.id == "mine"


@pytest.mark.parametrize("kind", ["published", "bin"])
def test_a_converted_model_gives_the_same_embeddings(kind: str, sources: dict[str, Path], tmp_path: Path) -> None:
    out = scfm.model.convert(sources[kind], tmp_path / "deep" / "out")
    assert sorted(path.name for path in out.iterdir()) == [
        "aliases.tsv",
        "card.json",
        "model.safetensors",
        "vocabulary.tsv",
    ]
    np.testing.assert_array_equal(
        scfm.model.load(out).embed(cells()), scfm.model.load(sources["published"]).embed(cells())
    )
    before, after = scfm.model.load(sources[kind]).vocabulary, scfm.model.load(out).vocabulary
    for name in ("genes", "tokens", "medians"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    for name in ("special_tokens", "mapping", "symbols", "species"):
        assert getattr(before, name) == getattr(after, name)
    for path in out.iterdir():  # and no pickle: neither a protocol mark nor a stop after an old one
        with pytest.raises(
            (pickle.UnpicklingError, ValueError, EOFError, KeyError, AttributeError, IndexError, UnicodeError)
        ):
            pickle.loads(path.read_bytes())


def test_conversions_that_are_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a converted model already; load it as it is"):
        scfm.model.convert(sources["converted"], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        scfm.model.convert(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for out in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        with pytest.raises(FileExistsError, match="exists already; choose another name, or remove it first"):
            scfm.model.convert(sources["published"], out)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]
    (tmp_path / "empty").mkdir()
    assert scfm.model.load(scfm.model.convert(sources["published"], tmp_path / "empty")).card.id == "published"


@pytest.mark.parametrize(
    "error", [RuntimeError("disk full"), KeyboardInterrupt()], ids=lambda error: type(error).__name__
)
def test_an_interrupted_conversion_leaves_nothing(
    error: BaseException, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        assert list(tmp_path.iterdir())  # the weights are there already
        raise error

    monkeypatch.setattr(Vocabulary, "save", fail)
    with pytest.raises(type(error)):
        scfm.model.convert(sources["bin"], tmp_path / "out")
    assert not list(tmp_path.iterdir())
