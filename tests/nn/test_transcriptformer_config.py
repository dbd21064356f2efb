"""Sizes of a TranscriptFormer, and the names and shapes of its published tensors."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scfm.nn import TranscriptFormer, TranscriptFormerConfig
from scfm.nn.transcriptformer import check_published, published_shapes
from scfm.testing import write_transcriptformer

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SIZES = {"vocab_size": 67, "n_assays": 3, "gene_vector_size": 12}
NORM = "transformer_encoder.encoder_layers.0.norm1.weight"


def write(folder: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a random checkpoint."""
    write_transcriptformer(folder, **options)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config, torch.load(folder / "model_weights.pt", weights_only=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return write(tmp_path_factory.mktemp("transcriptformer"))


@pytest.fixture
def published(written: tuple[dict[str, Any], dict[str, Tensor]]) -> dict[str, Any]:
    return copy.deepcopy(written[0])


@pytest.fixture
def config(published: dict[str, Any]) -> TranscriptFormerConfig:
    return TranscriptFormerConfig.from_dict(published, **SIZES)


@pytest.mark.parametrize("attn_bias", [False, True])
@pytest.mark.parametrize("fw_bias", [False, True])
def test_published_shapes(tmp_path: Path, attn_bias: bool, fw_bias: bool) -> None:
    content, tensors = write(tmp_path, attn_bias=attn_bias, fw_bias=fw_bias, n_layers=3)
    config = TranscriptFormerConfig.from_dict(content, **SIZES)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert published_shapes(config) == shapes
    check_published(shapes, config)
    assert (config.attn_bias, config.ffn_bias) == (attn_bias, fw_bias)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({NORM: None}, f"a TranscriptFormer of 2 layers. 1 missing: {NORM}"),
        ({"extra": (1,)}, "1 unexpected: extra"),
        ({NORM: None, "extra": (1,)}, f"1 missing: {NORM}. 1 unexpected: extra"),
        ({"mu.gene_embedding.weight": (66, 1)}, r"1 tensors .*weight is \(66, 1\), expected \(67, 1\)"),
    ],
)
def test_a_state_dict_that_does_not_fit(config: TranscriptFormerConfig, changes: Any, message: str) -> None:
    shapes = {name: shape for name, shape in (published_shapes(config) | changes).items() if shape is not None}
    with pytest.raises(ValueError, match=message):
        check_published(shapes, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 3}, "10 missing: transformer_encoder.encoder_layers.2"),
        ({"n_layers": 1}, "10 unexpected: transformer_encoder.encoder_layers.1"),
        ({"n_layers": 1_000_000}, "says 1,000,000 layers, but the state dict holds 41 tensors"),
        ({"ffn_bias": True}, "4 missing: .*linear1.bias"),
        ({"attn_bias": True}, "8 missing: .*linears.0.bias"),
        ({"gene_head_size": 9}, r"5 tensors do not fit .* \(10, 16\), expected \(9, 16\)"),
    ],
)
def test_a_config_that_does_not_fit(config: TranscriptFormerConfig, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_published(published_shapes(config), replace(config, **changes))


def test_a_tensor_that_does_not_fit(config: TranscriptFormerConfig, written: Any) -> None:
    with pytest.raises(ValueError, match=rf"{NORM} is \(5,\), expected \(16,\)"):
        TranscriptFormer(config).load_published({**written[1], NORM: torch.ones(5)})


def test_values(published: dict[str, Any], config: TranscriptFormerConfig) -> None:
    assert config == TranscriptFormerConfig(
        67, 3, 12, hidden_size=16, n_layers=2, n_heads=2, intermediate_size=24, max_genes=20, gene_head_size=10
    )
    sizes, loss = published["model"]["model_config"], published["model"]["loss_config"]
    sizes |= {"softcap": 0, "log_counts_eps": 0.5, "attn_bias": True, "fw_bias": True}
    loss["softplus_approx"] = False
    changed = TranscriptFormerConfig.from_dict(published, **SIZES)
    assert (changed.softcap, changed.log_counts_eps) == (0, 0.5)
    assert (changed.attn_bias, changed.ffn_bias, changed.softplus_approx) == (True, True, False)


def test_values_that_may_be_missing(published: dict[str, Any], config: TranscriptFormerConfig) -> None:
    del published["model"]["loss_config"]
    for name in ("log_counts_eps", "softcap", "attn_bias", "fw_bias", "activation", "mu_link_fn", "aux_len"):
        del published["model"]["model_config"][name]
    assert TranscriptFormerConfig.from_dict(published, **SIZES) == config


@pytest.mark.parametrize("content", [{}, {"model": None}, {"model": {}}, {"model": {"model_config": [1]}}])
def test_no_sizes(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="lacks the section model.model_config"):
        TranscriptFormerConfig.from_dict(content, **SIZES)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seq_len", "drop", "The model config lacks seq_len"),
        ("seq_len", 0, "seq_len must be a positive integer, got 0"),
        ("num_layers", "2", "num_layers must be a positive integer, got '2'"),
        ("num_heads", True, "num_heads must be a positive integer, got True"),
        ("model_dim", 2.0, "model_dim must be a positive integer, got 2.0"),
        ("num_heads", 3, "embed_dim 16 must be even and a multiple of num_heads 3"),
        ("embed_dim", 15, "embed_dim 15 must be even"),
        ("activation", "relu", "activation must be 'gelu', as in all published models; got 'relu'"),
        ("mu_link_fn", "softplus", "mu_link_fn must be 'softmax'"),
        ("aux_len", 2, "aux_len must be 1"),
        ("softcap", -1, "softcap must be a number from 0 to below 1e[+]06, got -1"),
        ("softcap", float("nan"), "softcap must be a number"),
        ("softcap", "10", "softcap must be a number"),
        ("log_counts_eps", True, "log_counts_eps must be a number from 0 to below 1, got True"),
        ("attn_bias", 1, "attn_bias must be true or false, got 1"),
        ("fw_bias", None, "fw_bias must be true or false, got None"),
    ],
)
def test_a_value_that_is_none(published: dict[str, Any], name: str, value: Any, message: str) -> None:
    sizes = published["model"]["model_config"]
    sizes.pop(name) if value == "drop" else sizes.update({name: value})
    with pytest.raises(ValueError, match=message):
        TranscriptFormerConfig.from_dict(published, **SIZES)


@pytest.mark.parametrize("name", ["vocab_size", "n_assays", "gene_vector_size"])
def test_sizes_beside_the_config(config: TranscriptFormerConfig, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got 0"):
        replace(config, **{name: 0})  # type: ignore[arg-type]
