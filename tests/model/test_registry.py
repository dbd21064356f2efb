from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import scfm
import scfm.model.families
from scfm.cli import main
from scfm.model import FoundationModel, _known
from scfm.model._citations import cite
from scfm.model.registry import card_of, families, register
from scfm.weights import ModelCard, read_cards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IDS = (
    "geneformer-v1-10m",
    "geneformer-v2-104m",
    "geneformer-v2-104m-clcancer",
    "geneformer-v2-316m",
    "geneformer-12l-30m",
    "geneformer-12l-95m",
    "geneformer-12l-95m-clcancer",
    "geneformer-20l-95m",
    "scfm-mini",
)


def test_every_model_is_listed() -> None:
    table = scfm.model.list_models()
    assert set(IDS) <= set(table.index)
    assert table.index.is_unique


@pytest.mark.parametrize("model_id", scfm.model.list_models().index)
def test_cards_are_complete(model_id: str) -> None:
    card = card_of(model_id)
    assert card.family in families()
    assert card.license
    assert card.description
    assert card.n_parameters
    assert card.pooling in families()[card.family].poolings
    assert all(len(sha) == 64 for sha in [card.source_sha256, *card.dictionaries.values()] if sha is not None)
    assert "@misc" not in cite(card.paper)  # the paper is in the bibliography
    for name in card.aliases:
        assert card_of(name.upper()) is card


@pytest.mark.parametrize("model_id", [i for i in IDS if i.startswith("geneformer")])
def test_parameter_counts_follow_from_the_sizes(model_id: str) -> None:
    from math import prod

    from scfm.nn import BertConfig, published_keys

    card = card_of(model_id)
    config = BertConfig(**card.architecture)
    required, optional = published_keys(config)
    assert sum(map(prod, required.values())) + prod(optional["cls.predictions.bias"]) == card.n_parameters
    assert config.hidden_size // config.n_heads == 64


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("gf-12L-95M-i4096", "geneformer-12l-95m"),
        ("GF-6L-30M-i2048", "geneformer-v1-10m"),
        ("Geneformer-V2-104M_CLcancer", "geneformer-v2-104m-clcancer"),
        ("GF_20L_95M_i4096", "geneformer-20l-95m"),
    ],
)
def test_spellings(name: str, model_id: str) -> None:
    assert card_of(name).id == model_id


def test_an_unknown_name_suggests_close_ones() -> None:
    with pytest.raises(ValueError, match="Did you mean 'geneformer-v2-104m'"):
        scfm.model.load("geneformer-v2-104")


def test_a_model_that_is_not_there_says_what_to_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scfm.settings, "cache_dir", tmp_path)
    with pytest.raises(FileNotFoundError, match="(?s)Geneformer-V2-104M/model.safetensors.*token_dictionary.*convert"):
        scfm.model.load("geneformer-v2-104m")


def test_a_name_cannot_be_taken_twice() -> None:
    card = ModelCard(id="another", family="another", pooling="mean", max_tokens=8, aliases=("scfm-mini",))
    with pytest.raises(ValueError, match="already taken by scfm-mini"):
        register([card])(type("Another", (), {"family": "another", "poolings": ()}))
    with pytest.raises(ValueError, match="family 'geneformer' is already taken"):
        register()(type("Another", (), {"family": "geneformer", "poolings": ()}))


def test_a_family_names_itself_and_its_cards() -> None:
    with pytest.raises(TypeError, match="Another lacks family and poolings"):
        register()(type("Another", (), {}))
    with pytest.raises(ValueError, match="card of scfm-mini is of the family 'scfm_mini', and Another of 'another'"):
        register([card_of("scfm-mini")])(type("Another", (), {"family": "another", "poolings": ()}))


def test_cards_survive_a_file(tmp_path: Path) -> None:
    for model_id in IDS:
        card = card_of(model_id)
        card.write(tmp_path)
        assert ModelCard.read(tmp_path) == card


def test_cards_of_a_file_share_what_their_group_says() -> None:
    card, folder = card_of("geneformer-12l-30m"), "geneformer/gene_dictionaries_30m"
    assert card == ModelCard(
        id="geneformer-12l-30m",
        family="geneformer",
        architecture={
            "vocab_size": 25_426,
            "n_layers": 12,
            "hidden_size": 512,
            "n_heads": 8,
            "intermediate_size": 1024,
            "max_positions": 2048,
        },
        pooling="mean",
        hidden_layer=-1,
        max_tokens=2048,
        special_tokens={"<pad>": 0, "<mask>": 1},
        aliases=("GF-12L-30M-i2048", "gf-12L-40M-i2048"),
        source="ctheodoris/Geneformer",
        source_file="gf-12L-30M-i2048/pytorch_model.bin",
        revision="31bf641d0f173a18a5e06d9a6574bb0d3fe5edc1",
        source_sha256="812f8d85e5ecf9d64c268f052f6ece2c1906bc4f1aecf70d5144b2598386b615",
        dictionaries={
            f"{folder}/token_dictionary_gc30M.pkl": "ab9dc40973fa5224d77b793e2fd114cacf3d08423ed9c4c49caf0ba9c7f218f1",
            f"{folder}/gene_median_dictionary_gc30M.pkl": "b3b589bb5ec75040d05fc44dd6bf0184cf87f3c362cf158d196a6ed3b7fe5f39",
            f"{folder}/ensembl_mapping_dict_gc30M.pkl": "eac0fb0b3007267871b6305ac0003ceba19d4f28d85686cb9067ecf142787869",
            f"{folder}/gene_name_id_dict_gc30M.pkl": "55e67962e79c0039a6c32d43c5c99f38e51964bbcfa32f736150ee1e285c438c",
        },
        license="Apache-2.0",
        paper="10.1038/s41586-023-06139-9",
        description="27 million human cells (Genecorpus-30M), June 2021; no longer published",
        n_parameters=39_591_250,
    )
    assert card_of("sccello-zeroshot").dictionaries == {
        f"ctheodoris/Geneformer@05fcbeb8a27d49e0a7a4349152202ee2c1cbfd28:{name}": sha256
        for name, sha256 in card.dictionaries.items()
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[a.models]]\nid = 'x'\nmax_tokens = 8", r"lacks \['pooling'\].*: correct the file"),
        ("[a]\ncolour = 1\n[[a.models]]\nid = 'x'\npooling = 'mean'\nmax_tokens = 8", r"unknown entries \['colour'\]"),
        ("[[a.models]]\nid = 'x'\npooling = 'mean'\nmax_tokens = '8'", "max_tokens is '8', which a card cannot hold"),
    ],
)
def test_files_of_cards_that_are_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "cards.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_cards(tmp_path / "cards.toml", "another")


def test_families_are_those_of_the_folder() -> None:
    found = Path(scfm.model.families.__file__).parent.iterdir()
    assert set(families()) == {path.stem for path in found if not path.name.startswith("_")}


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Let these functions be what importing the packages of models does."""

    def install(**packages: Callable[[], object]) -> None:
        points = [
            SimpleNamespace(load=load, value=f"{name}.models", dist=SimpleNamespace(name=name))
            for name, load in packages.items()
        ]
        monkeypatch.setattr(_known, "entry_points", lambda group: points)
        _known.import_families.cache_clear()

    known: list[tuple[dict[str, Any], dict[str, Any]]]
    known = [(registered, dict(registered)) for registered in (_known.known_families, _known.known_cards)]
    yield install
    monkeypatch.undo()
    for registered, before in known:
        registered.clear()
        registered.update(before)


def test_packages_that_cannot_be_imported_are_left_out(
    plugins: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def add(name: str) -> None:
        card = ModelCard(id=f"{name}-1", family=name, pooling="mean", max_tokens=8)
        register([card])(type(name, (FoundationModel,), {"family": name, "poolings": ("mean",)}))

    def missing() -> None:
        msg = "libfoo.so.1: no such file"
        raise ImportError(msg)

    def half() -> None:
        add("half")
        sys.exit("no licence")

    def interrupted() -> None:
        raise KeyboardInterrupt

    plugins(first=missing, second=half, third=lambda: add("whole"), fourth=interrupted)
    with pytest.warns(UserWarning, match="are left out") as caught:
        known = scfm.model.list_models().index
    assert "whole-1" in known
    assert "half-1" not in known
    assert "half" not in families()
    assert set(IDS) <= set(known)
    said = [str(warning.message) for warning in caught]
    assert len(said) == 3
    assert "package fourth" in said[2]
    assert "package first are left out, because first.models cannot be imported (ImportError: libfoo.so.1" in said[0]
    assert "package second" in said[1]
    assert "no licence" in said[1]
    assert scfm.model.load("scfm-mini").card.id == "scfm-mini"  # and no second warning
    plugins(first=missing)
    with pytest.warns(UserWarning, match="package first are left out"):
        assert main(["models"]) == 0
    assert "scfm-mini" in capsys.readouterr().out
