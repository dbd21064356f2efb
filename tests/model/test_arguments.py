"""What becomes of the keywords of a verb."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

import scfm
from scfm.model.arguments import Arguments

MODEL = scfm.model.load("scfm-mini")
COMMON = {one.name for one in fields(Arguments)} - {"options"}


def test_defaults_are_those_of_the_card() -> None:
    options = Arguments().resolved(MODEL)
    card = MODEL.card
    assert (options.pooling, options.hidden_layer, options.max_tokens) == (
        card.pooling,
        card.hidden_layer,
        card.max_tokens,
    )
    assert options.n_layers == MODEL.n_layers + card.hidden_layer
    assert options.compat is None


def test_keywords_are_taken_apart() -> None:
    arguments = Arguments.of({"layer": "counts", "scale": 2.0})
    assert (arguments.layer, arguments.options) == ("counts", {"scale": 2.0})


def test_they_cannot_be_changed_and_travel() -> None:
    arguments = Arguments(layer="counts", options={"scale": 2.0})
    with pytest.raises(FrozenInstanceError):
        arguments.layer = "other"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(arguments)) == arguments


@pytest.mark.parametrize("name", ["pooling", "groupby", "key_added", "copy"])
def test_an_argument_of_another_verb(name: str) -> None:
    with pytest.raises(TypeError, match=f"'{name}' is no option of this call; it belongs to scfm.tl.embed"):
        Arguments(options={name: 1})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"compat": "scgpt"}, "compat='scgpt' is not known; use 'upstream'"),
        ({"pooling": "median"}, "pooling='median' is not known to scfm-mini; use one of"),
        ({"hidden_layer": 1}, "hidden_layer=1 does not exist: 0 is the last"),
        ({"hidden_layer": True}, "hidden_layer=True does not exist"),
        ({"max_tokens": 2}, "max_tokens=2 is out of range: scfm-mini takes 3 to"),
        ({"max_tokens": 10.0}, "max_tokens=10.0 is out of range"),
    ],
)
def test_values_out_of_range(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Arguments(**given).resolved(MODEL)


@pytest.mark.parametrize("verb", [scfm.tl.embed, scfm.tl.embed_store, scfm.tl.marker_genes, MODEL.embed])
def test_verbs_spell_all_of_them(verb: Any) -> None:
    parameters = inspect.signature(verb).parameters
    # what a single gene changes is too little for weights of few bits
    common = COMMON - ({"quantize"} if verb is scfm.tl.marker_genes else set())
    assert set(parameters) >= common | {"options"}
    defaults = {one.name: one.default for one in fields(Arguments)}
    assert all(parameters[name].default == defaults[name] for name in common)
