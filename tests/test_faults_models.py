"""Configs, cards and names that are wrong, and conversions that go wrong."""

from __future__ import annotations

import json
import pickle
import shutil
import tracemalloc
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scfm
from scfm.genes import Vocabulary
from scfm.testing import write_geneformer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

N_GENES = 12
SIZES: dict[str, Any] = {"n_genes": N_GENES, "n_layers": 2, "hidden_size": 8, "max_tokens": 16}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    published = write_geneformer(root / "published", **SIZES)
    return {
        "published": published,
        "bin": write_geneformer(root / "bin", **SIZES, weights="pytorch_model.bin"),
        "converted": scfm.model.convert(published, root / "converted"),
    }


@pytest.fixture
def folder_of(sources: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copy one of the sources, to be damaged."""
    return lambda kind: shutil.copytree(sources[kind], tmp_path / "model")


def cells() -> ad.AnnData:
    values = np.random.default_rng(0).poisson(1, (5, N_GENES)).astype(np.float32) + 1
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(5)])
    return ad.AnnData(values, obs=obs, var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]))


def change_json(path: Path, changes: dict[str, Any]) -> None:
    """Set entries of a JSON object; ``...`` takes one out, and a dictionary is merged."""
    values = json.loads(path.read_text())
    for name, value in changes.items():
        merge = name == "architecture" and isinstance(value, dict) and value
        values[name] = {**values[name], **value} if merge else value
        if value is ...:
            del values[name]
    path.write_text(json.dumps(values))


def refused(folder: Path, match: str) -> None:
    """Embedding with the model of a folder raises, and nothing is stored."""
    adata = cells()
    with pytest.raises(ValueError, match=match):
        scfm.tl.embed(adata, folder)
    assert not list(adata.obsm)
    assert not list(adata.uns)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"hidden_size": ...}, "lacks hidden_size"),
    "text": ({"num_hidden_layers": "2"}, "num_hidden_layers must be a positive integer, got '2'"),
    "float": ({"hidden_size": 8.0}, "hidden_size must be a positive integer, got 8.0"),
    "bool": ({"num_attention_heads": True}, "num_attention_heads must be a positive integer"),
    "null": ({"vocab_size": None}, "vocab_size must be a positive integer, got None"),
    "negative": ({"intermediate_size": -1}, "intermediate_size must be a positive integer"),
    "heads": ({"num_attention_heads": 3}, "hidden_size 8 is not a multiple of num_attention_heads 3"),
    "activation": ({"hidden_act": "swiglu"}, "hidden_act must be 'relu' or 'gelu', got 'swiglu'"),
    "activation list": ({"hidden_act": ["relu"]}, "hidden_act must be 'relu' or 'gelu'"),
    "eps": ({"layer_norm_eps": "x"}, "layer_norm_eps must be a number"),
    "positions": ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
    "another type": (
        {"model_type": "gpt2"},
        r"config.json \(model_type='gpt2'\) fits 0 families.*'geneformer'.*family=",
    ),
    "no type": ({"model_type": ...}, r"model_type=None\) fits 0 families"),
    "fewer layers": ({"num_hidden_layers": 1}, "does not fit a BERT model of 1 layers. 16 unexpected"),
    "more layers": ({"num_hidden_layers": 3}, "does not fit a BERT model of 3 layers. 16 missing"),
    "huge vocabulary": ({"vocab_size": 10**12}, "1,000,000,000,000 tokens, but token_dictionary_gctiny.pkl has 16"),
    "wider": ({"hidden_size": 16}, r"not fit.*is \(16, 8\), expected \(16, 16\)"),
    "huge width": ({"hidden_size": 10**12}, "not fit"),
    "huge feed-forward": ({"intermediate_size": 10**13}, "not fit"),
    "huge positions": ({"max_position_embeddings": 10**13}, "not fit"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_does_not_fit(kind: str, folder_of: Callable[[str], Path]) -> None:
    changes, match = CONFIGS[kind]
    folder = folder_of("published")
    change_json(folder / "config.json", changes)
    refused(folder, match)


@pytest.mark.parametrize("kind", ["published", "converted"])
def test_a_huge_number_of_layers_takes_little_memory(kind: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(kind)
    if kind == "published":
        change_json(folder / "config.json", {"num_hidden_layers": 10_000})
    else:
        change_json(folder / "card.json", {"architecture": {"n_layers": 10_000}})
    tracemalloc.start()
    with pytest.raises(ValueError, match="10,?000"):
        scfm.model.load(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no valid JSON"),
        ('{"hidden_size": 8', "no valid JSON.*cut off"),
        ("<html>", "no valid JSON.*web page"),
        ("[1, 2]", "holds a JSON list, expected an object"),
        ("[" * 100_000, "no valid JSON"),
        (json.dumps({"a": "x" * 2_000_000}), "has 2,000,0.. bytes; a config or card has at most 1,000,000"),
    ],
    ids=["empty", "cut", "page", "list", "deep", "large"],
)
@pytest.mark.parametrize(("kind", "name"), [("published", "config.json"), ("converted", "card.json")])
def test_json_that_cannot_be_read(
    kind: str, name: str, text: str, match: str, folder_of: Callable[[str], Path]
) -> None:
    path = folder_of(kind) / name
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{name}.*{match}"):
        scfm.model.load(path.parent)


SPECIALS = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3}
CARDS: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"format": 2}, "no model card of format 1; convert the model again"),
    "no format": ({"format": ...}, "no model card of format 1"),
    "format text": ({"format": "1"}, "no model card of format 1"),
    "missing": ({"pooling": ...}, r"lacks \['pooling'\]"),
    "unknown": ({"colour": "red"}, r"unknown entries \['colour'\]"),
    "id": ({"id": 3}, "id is 3, which a card cannot hold"),
    "tokens": ({"max_tokens": "16"}, "max_tokens is '16', which a card cannot hold"),
    "bool": ({"max_tokens": True}, "max_tokens"),
    "architecture": ({"architecture": [1]}, r"architecture is \[1\], which a card cannot hold"),
    "empty architecture": ({"architecture": {}}, "architecture"),
    "unknown size": ({"architecture": {"n_experts": 3}}, "n_experts"),
    "size text": ({"architecture": {"hidden_size": "8"}}, "hidden_size must be a positive integer, got '8'"),
    "size null": ({"architecture": {"n_heads": None}}, "num_attention_heads must be a positive integer"),
    "wider": ({"architecture": {"hidden_size": 16}}, "not fit"),
    "more positions": ({"max_tokens": 17}, "max_tokens"),
    "negative tokens": ({"max_tokens": -5}, "max_tokens"),
    "positive layer": ({"hidden_layer": 1}, "hidden_layer"),
    "pooling": ({"pooling": "max"}, "pooling"),
    "specials": ({"special_tokens": {"<pad>": "0"}}, "special_tokens is .*which a card cannot hold"),
    "clashing specials": ({"special_tokens": {**SPECIALS, "<cls>": 5}}, r"\[5\] are used for a gene and for a special"),
    "negative special": ({"special_tokens": {**SPECIALS, "<cls>": -2}}, "special"),
    "no eos": ({"special_tokens": {"<pad>": 0, "<mask>": 1, "<cls>": 2}}, "<eos>"),
    "family": ({"family": "scgpt"}, "family='scgpt' is not known; the families are esm2ce, geneformer"),
    "hash": ({"weights_sha256": "00"}, "model.safetensors has sha256 .*, expected 00: it is damaged"),
}


@pytest.mark.parametrize("kind", CARDS)
def test_a_damaged_card(kind: str, folder_of: Callable[[str], Path]) -> None:
    changes, match = CARDS[kind]
    folder = folder_of("converted")
    change_json(folder / "card.json", changes)
    refused(folder, match)


@pytest.mark.parametrize("position", [-1, -1000])
def test_a_changed_byte_of_the_weights(position: int, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("converted")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[position] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="model.safetensors has sha256 .* expected .* damaged .*convert it again"):
        scfm.model.load(folder)


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


NAMES: dict[str, tuple[str, type[Exception], str]] = {
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


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_that_is_no_model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, error, match = NAMES[kind]
    monkeypatch.setattr(scfm.settings, "cache_dir", tmp_path)
    adata = cells()
    with pytest.raises(error, match=match):
        scfm.tl.embed(adata, name)
    assert not list(adata.obsm)
    assert not list(adata.uns)


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
