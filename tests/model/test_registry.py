from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import scfm
from scfm.model._citations import cite
from scfm.model.registry import card_of, families, register
from scfm.weights import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

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
        register([card])(type("Another", (), {"family": "another"}))
    with pytest.raises(ValueError, match="family 'geneformer' is already taken"):
        register()(type("Another", (), {"family": "geneformer"}))


def test_cards_survive_a_file(tmp_path: Path) -> None:
    for model_id in IDS:
        card = card_of(model_id)
        card.write(tmp_path)
        assert ModelCard.read(tmp_path) == card
