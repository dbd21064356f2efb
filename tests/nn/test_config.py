from __future__ import annotations

from typing import Any

import pytest

from scfm.nn import BertConfig

V1 = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.02,
    "gradient_checkpointing": False,
    "hidden_act": "relu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 2048,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "vocab_size": 25426,
}


def test_published_config() -> None:
    assert BertConfig.from_dict(V1) == BertConfig(25426, 256, 6, 4, 512, 2048)


def test_defaults_are_those_of_the_format() -> None:
    shape_keys = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
    config = BertConfig.from_dict({key: V1[key] for key in [*shape_keys, "max_position_embeddings"]})
    assert config.hidden_act == "gelu"
    assert (config.type_vocab_size, config.layer_norm_eps, config.pad_token_id) == (2, 1e-12, 0)


def test_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match="lacks num_hidden_layers, intermediate_size"):
        BertConfig.from_dict({k: v for k, v in V1.items() if k not in ("num_hidden_layers", "intermediate_size")})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vocab_size", 0, "vocab_size must be a positive integer, got 0"),
        ("num_hidden_layers", "6", "num_hidden_layers must be a positive integer, got '6'"),
        ("max_position_embeddings", True, "max_position_embeddings must be a positive integer, got True"),
        ("intermediate_size", 512.0, "intermediate_size must be a positive integer, got 512.0"),
        ("type_vocab_size", -1, "type_vocab_size must be a positive integer, got -1"),
        ("num_attention_heads", 3, "hidden_size 256 is not a multiple of num_attention_heads 3"),
        ("layer_norm_eps", 0.0, "layer_norm_eps must be a number between 0 and 1, got 0.0"),
        ("layer_norm_eps", "1e-12", "layer_norm_eps must be a number between 0 and 1, got '1e-12'"),
        ("hidden_act", "silu", "hidden_act must be 'relu' or 'gelu', got 'silu'"),
        ("hidden_act", ["relu"], r"hidden_act must be 'relu' or 'gelu', got \['relu'\]"),
        ("pad_token_id", 25426, "pad_token_id must be an integer from 0 to 25425, got 25426"),
        ("pad_token_id", None, "pad_token_id must be an integer from 0 to 25425, got None"),
        ("position_embedding_type", "relative_key", "position_embedding_type must be 'absolute', got 'relative_key'"),
    ],
)
def test_values_out_of_bounds(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BertConfig.from_dict(V1 | {key: value})
