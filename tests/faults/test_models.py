"""Configs and cards of all kinds of models that are wrong, and files that cannot be read as such."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

import scfm

from .faulty import change_json, refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPECIALS = {"unknown": 0, "[PAD]": 1, "[START]": 2, "[END]": 3, "[RD]": 4, "[CELL]": 5, "[MASK]": 6}


def sizes(**changes: Any) -> dict[str, Any]:
    return {"model": {"model_config": changes}}


def data(**changes: Any) -> dict[str, Any]:
    return {"model": {"data_config": changes}}


NAMES = list(SPECIALS)
CONFIGS: dict[str, dict[str, tuple[dict[str, Any], str]]] = {
    "published": {
        "missing": ({"hidden_size": ...}, "lacks hidden_size"),
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
    },
    "tf": {
        "no model": ({"model": ...}, "fits 0 families; name one of .*'transcriptformer'"),
        "model list": ({"model": []}, "fits 0 families"),
        "no sizes": ({"model": {"model_config": ...}}, "fits 0 families"),
        "sizes null": ({"model": {"model_config": None}}, "lacks the section model.model_config"),
        "no data": (
            {"model": {"data_config": ...}},
            "must list names under model.data_config.special_tokens, got None",
        ),
        "data list": (
            {"model": {"data_config": [1]}},
            "must list names under model.data_config.special_tokens, got None",
        ),
        "loss": (
            {"model": {"loss_config": {"softplus_approx": "no"}}},
            "softplus_approx must be true or false, got 'no'",
        ),
        "missing": (sizes(embed_dim=...), "lacks embed_dim"),
        "no biases": (sizes(attn_bias=True), "does not fit a TranscriptFormer of 2 layers. 8 missing"),
        "fewer layers": (sizes(num_layers=1), "does not fit a TranscriptFormer of 1 layers. 10 unexpected"),
        "more layers": (sizes(num_layers=3), "does not fit a TranscriptFormer of 3 layers. 10 missing"),
        "huge layers": (sizes(num_layers=10**9), "says 1,000,000,000 layers, but the state dict holds 41 tensors"),
        "wider": (sizes(embed_dim=16), r"33 tensors do not fit the model config: .* is \(8, 6\), expected \(16, 6\)"),
        "huge width": (sizes(embed_dim=10**12), "33 tensors do not fit"),
        "no specials": (data(special_tokens=...), "special_tokens, got None"),
        "specials numbers": (data(special_tokens=[0, 1]), r"special_tokens, got \[0, 1\]"),
        "specials empty": (data(special_tokens=[]), r"special_tokens, got \[\]"),
        "no start": (
            data(special_tokens=[n.replace("START", "BOS") for n in NAMES]),
            r"lacks the special tokens \['\[STA",
        ),
        "specials twice": (
            data(special_tokens=[*NAMES[:6], "[RD]"]),
            "Tokens .6. are used for a gene and for a special",
        ),
        "fewer specials": (data(special_tokens=NAMES[:6]), r"4 tensors do not fit .*is \(19, 6\), expected \(18, 6\)"),
        "no files": (data(esm2_mappings=...), "must list names under model.data_config.esm2_mappings, got None"),
    },
}


@pytest.mark.parametrize(("source", "kind"), [(source, kind) for source in CONFIGS for kind in CONFIGS[source]])
def test_a_config_that_does_not_fit(source: str, kind: str, folder_of: Callable[[str], Path]) -> None:
    changes, match = CONFIGS[source][kind]
    folder = folder_of(source)
    change_json(folder / "config.json", changes)
    refused(folder, match)


@pytest.mark.parametrize("kind", ["no model", "model list", "no sizes", "no data"])
def test_a_config_without_its_sections_when_the_family_is_named(kind: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("tf")
    change_json(folder / "config.json", CONFIGS["tf"][kind][0])
    with pytest.raises(ValueError, match="config"):
        scfm.model.load(folder, family="transcriptformer")


HUGE: dict[str, tuple[str, dict[str, Any], str]] = {
    "published": ("config.json", {"num_hidden_layers": 10_000}, "10,?000"),
    "converted": ("card.json", {"architecture": {"n_layers": 10_000}}, "10,?000"),
    "tf": ("config.json", sizes(num_layers=10**7), "10,000,000 layers, but the state dict holds 41 tensors"),
    "converted tf": (
        "card.json",
        {"architecture": {"n_layers": 10**7}},
        "10,000,000 layers, but the state dict holds 41 tensors",
    ),
}


@pytest.mark.parametrize("source", HUGE)
def test_a_huge_number_of_layers_takes_little_memory(source: str, folder_of: Callable[[str], Path]) -> None:
    name, changes, match = HUGE[source]
    folder = folder_of(source)
    change_json(folder / name, changes)
    tracemalloc.start()
    with pytest.raises(ValueError, match=match):
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


SPECIALS_OF_V2 = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3}
CARDS: dict[str, dict[str, tuple[dict[str, Any], str]]] = {
    "converted": {
        "format": ({"format": 2}, "not a model card of format 1; convert the model again"),
        "no format": ({"format": ...}, "not a model card of format 1"),
        "format text": ({"format": "1"}, "not a model card of format 1"),
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
        "clashing specials": (
            {"special_tokens": {**SPECIALS_OF_V2, "<cls>": 5}},
            r"\[5\] are used for a gene and for a special",
        ),
        "negative special": ({"special_tokens": {**SPECIALS_OF_V2, "<cls>": -2}}, "special"),
        "no eos": ({"special_tokens": {"<eos>": ...}}, "<eos>"),
        "family": ({"family": "scgpt"}, "family='scgpt' is not known; the families are esm2ce, geneformer"),
        "hash": ({"weights_sha256": "00"}, "model.safetensors has sha256 .*, expected 00: it is damaged"),
    },
    "converted tf": {
        "no labels": ({"aux_tokens": ...}, "lacks .*an assay 'unknown': convert the model again"),
        "no assays": ({"aux_tokens": {}}, "lacks .*an assay 'unknown'"),
        "labels list": ({"aux_tokens": []}, r"aux_tokens is \[\], which a card cannot hold"),
        "labels null": ({"aux_tokens": None}, "aux_tokens is None, which a card cannot hold"),
        "assays list": ({"aux_tokens": {"assay": []}}, "aux_tokens is {'assay': ..}, which a card cannot hold"),
        "text": ({"aux_tokens": {"assay": {"unknown": "0"}}}, "aux_tokens is .*which a card cannot hold"),
        "fraction": ({"aux_tokens": {"assay": {"unknown": 0.5}}}, "aux_tokens is .*which a card cannot hold"),
        "no unknown": ({"aux_tokens": {"assay": {"unknown": ...}}}, "lacks .*an assay 'unknown'"),
        "large": ({"aux_tokens": {"assay": {"a": 3}}}, "Assay ids of tf are not all below 3, the rows of its table"),
        "negative": ({"aux_tokens": {"assay": {"a": -1}}}, "Assay ids of tf are not all below 3"),
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
    },
}


@pytest.mark.parametrize(("source", "kind"), [(source, kind) for source in CARDS for kind in CARDS[source]])
def test_a_damaged_card(source: str, kind: str, folder_of: Callable[[str], Path]) -> None:
    changes, match = CARDS[source][kind]
    folder = folder_of(source)
    change_json(folder / "card.json", changes)
    refused(folder, match)


FAMILIES: dict[tuple[str, str], str] = {
    ("converted tf", "geneformer"): "holds a model of the family 'transcriptformer', which 'geneformer' cannot take",
    ("tf", "geneformer"): "config lacks vocab_size, hidden_size",
    ("baseline", "transcriptformer"): "holds a model of the family 'esm2ce', which 'transcriptformer' cannot take",
    ("converted", "esm2ce"): "holds a model of the family 'geneformer', which 'esm2ce' cannot take",
    ("published", "transcriptformer"): "config",
    ("published", "esm2ce"): "config",
    ("tf", "bert"): "family='bert' is not known; the families are esm2ce, geneformer",
}


@pytest.mark.parametrize("pair", FAMILIES, ids=" as ".join)
def test_a_wrong_family(pair: tuple[str, str], sources: dict[str, Path]) -> None:
    assert scfm.model.load(sources["baseline"]).family == "esm2ce"
    with pytest.raises(ValueError, match=FAMILIES[pair]):
        scfm.model.load(sources[pair[0]], family=pair[1])
