"""Strict reading of published state dicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from scfm.nn import BertConfig, BertEncoder, MaskedLMHead, check_shapes, published_keys

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = BertConfig(
    vocab_size=30, hidden_size=16, n_layers=3, n_heads=4, intermediate_size=24, max_positions=12, hidden_act="relu"
)
DECODER = "cls.predictions.decoder"


class Lazy(Mapping[str, Tensor]):
    """A mapping that remembers which tensors were read."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.read: list[str] = []

    def __getitem__(self, key: str) -> Tensor:
        self.read.append(key)
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def state_dict() -> dict[str, Tensor]:
    torch.manual_seed(0)
    required, _ = published_keys(CONFIG)
    tensors = {name: torch.randn(shape) for name, shape in required.items()}
    return tensors | {"cls.predictions.bias": torch.randn(CONFIG.vocab_size)}


def extras(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    d = CONFIG.hidden_size
    return {
        "bert.embeddings.position_ids": torch.arange(CONFIG.max_positions)[None],
        f"{DECODER}.weight": tensors["bert.embeddings.word_embeddings.weight"].clone(),
        f"{DECODER}.bias": tensors["cls.predictions.bias"].clone(),
        "bert.pooler.dense.weight": torch.zeros(d, d),
        "bert.pooler.dense.bias": torch.zeros(d),
    }


def test_keys_are_those_of_the_peer(peer: Callable[..., tuple[Any, BertConfig]]) -> None:
    model, config = peer()
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    required, optional = published_keys(config)
    assert required.keys() <= found.keys()
    assert found.items() <= (required | optional).items()


@pytest.mark.parametrize(("n_layers", "n_tensors"), [(6, 106), (12, 202), (18, 298), (20, 330)])
def test_number_of_keys(n_layers: int, n_tensors: int) -> None:
    sizes = {"vocab_size": 30, "hidden_size": 16, "n_heads": 4, "intermediate_size": 24, "max_positions": 12}
    required, optional = published_keys(BertConfig(n_layers=n_layers, **sizes))
    assert len(required) + 1 == n_tensors  # and one of the two names of the output bias
    assert not required.keys() & optional.keys()


def test_extras_change_nothing() -> None:
    tensors = state_dict()
    plain, extra = BertEncoder(CONFIG), BertEncoder(CONFIG)
    plain.load_published(tensors)
    extra.load_published(tensors | extras(tensors))
    for a, b in zip(plain.parameters(), extra.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("names", [("bias",), ("decoder.bias",), ("bias", "decoder.bias")])
def test_either_name_of_the_output_bias(names: tuple[str, ...]) -> None:
    tensors = state_dict()
    bias = tensors.pop("cls.predictions.bias")
    tensors |= {f"cls.predictions.{name}": bias for name in names}
    head = MaskedLMHead(CONFIG)
    head.load_published(tensors)
    assert torch.equal(head.bias, bias)
    BertEncoder(CONFIG).load_published(tensors)


def test_two_output_biases_that_differ() -> None:
    tensors = state_dict()
    tensors[f"{DECODER}.bias"] = tensors["cls.predictions.bias"] + 1
    with pytest.raises(ValueError, match=r"cls.predictions.bias and cls.predictions.decoder.bias differ"):
        MaskedLMHead(CONFIG).load_published(tensors)


@pytest.mark.parametrize("module", [BertEncoder, MaskedLMHead])
def test_untied_output_weights(module: Callable[[BertConfig], BertEncoder | MaskedLMHead]) -> None:
    tensors = state_dict()
    tensors[f"{DECODER}.weight"] = torch.zeros(CONFIG.vocab_size, CONFIG.hidden_size)
    with pytest.raises(ValueError, match=r"decoder.weight differs from bert.embeddings.word_embeddings.weight"):
        module(CONFIG).load_published(tensors)


def test_only_what_is_built_is_read() -> None:
    lazy = Lazy(state_dict())
    BertEncoder(CONFIG, 1).load_published(lazy)
    assert len(lazy.read) == len(set(lazy.read)) == 5 + 16
    assert not any(name.startswith(("bert.encoder.layer.1", "bert.encoder.layer.2", "cls.")) for name in lazy.read)


def test_layers_that_are_not_built_must_be_there() -> None:
    tensors = state_dict()
    del tensors["bert.encoder.layer.2.output.dense.bias"]
    with pytest.raises(ValueError, match=r"1 missing: bert.encoder.layer.2.output.dense.bias"):
        BertEncoder(CONFIG, 1).load_published(tensors)


def test_missing_and_unexpected_names() -> None:
    tensors = {name: tensor for name, tensor in state_dict().items() if "layer.0.attention" not in name}
    tensors["classifier.weight"] = torch.zeros(2, 16)
    with pytest.raises(ValueError, match="10 missing: ") as caught:
        BertEncoder(CONFIG).load_published(tensors)
    text = str(caught.value)
    assert "does not fit a BERT model of 3 layers" in text
    assert "and 5 more. 1 unexpected: classifier.weight." in text
    assert text.count("bert.encoder.layer.0") == 5


def test_shapes_alone() -> None:
    tensors = state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in (tensors | extras(tensors)).items()}
    check_shapes(shapes, CONFIG)
    with pytest.raises(ValueError, match=r"1 tensors do not fit .*position_ids is \(1, 13\), expected \(1, 12\)"):
        check_shapes(shapes | {"bert.embeddings.position_ids": (1, 13)}, CONFIG)
    with pytest.raises(ValueError, match="1 unexpected: classifier.bias"):
        check_shapes(shapes | {"classifier.bias": (2,)}, CONFIG)
    with pytest.raises(ValueError, match="says 1,000,000,000 layers, but the state dict holds"):
        check_shapes(shapes, replace(CONFIG, n_layers=10**9))


def test_no_output_bias() -> None:
    tensors = state_dict()
    del tensors["cls.predictions.bias"]
    with pytest.raises(ValueError, match=r"1 missing: cls.predictions.bias"):
        BertEncoder(CONFIG).load_published(tensors)


def test_without_head() -> None:
    tensors = {name: tensor for name, tensor in state_dict().items() if name.startswith("bert.")}
    whole, bare = BertEncoder(CONFIG), BertEncoder(CONFIG)
    whole.load_published(state_dict())
    bare.load_published(tensors)
    for a, b in zip(whole.parameters(), bare.parameters(), strict=True):
        assert torch.equal(a, b)
    check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, CONFIG)
    with pytest.raises(ValueError, match="5 missing: cls"):
        MaskedLMHead(CONFIG).load_published(tensors)
    rest = "cls.predictions.transform.dense.weight"
    with pytest.raises(ValueError, match="4 missing: cls"):
        BertEncoder(CONFIG).load_published(tensors | {rest: state_dict()[rest]})


def test_wrong_shapes() -> None:
    tensors = state_dict()
    tensors["bert.embeddings.position_embeddings.weight"] = torch.zeros(13, 16)
    tensors["bert.encoder.layer.1.intermediate.dense.bias"] = torch.zeros(24, dtype=torch.int64)
    message = (
        r"2 tensors do not fit the model config: bert.embeddings.position_embeddings.weight is \(13, 16\), expected "
        r"\(12, 16\); bert.encoder.layer.1.intermediate.dense.bias is \(24,\) of torch.int64, expected \(24,\)"
    )
    with pytest.raises(ValueError, match=message):
        BertEncoder(CONFIG).load_published(tensors)
    tensors = state_dict() | {"cls.predictions.transform.dense.weight": torch.zeros(16, 15)}
    with pytest.raises(ValueError, match=r"is \(16, 15\), expected \(16, 16\)"):
        MaskedLMHead(CONFIG).load_published(tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_build_on_meta(dtype: torch.dtype) -> None:
    tensors = state_dict()
    with torch.device("meta"):
        encoder, head = BertEncoder(CONFIG).to(dtype), MaskedLMHead(CONFIG).to(dtype)
    encoder.load_published(tensors)
    head.load_published(tensors)
    words = tensors["bert.embeddings.word_embeddings.weight"].to(dtype)
    assert torch.equal(encoder.word_embeddings.weight, words)
    value = tensors["bert.encoder.layer.2.attention.self.value.bias"].to(dtype)
    assert torch.equal(encoder.layers[2].qkv.bias[32:], value)
    assert torch.equal(head.dense.bias, tensors["cls.predictions.transform.dense.bias"].to(dtype))
