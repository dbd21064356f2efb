"""Adapters: what they compute, what of a network they change, and their files."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import scfm
from scfm.nn.linear import is_plain
from scfm.testing import write_geneformer
from scfm.train import LoRA
from scfm.train.adapter_files import load_adapters, save_adapters
from scfm.train.adapters import FUSED, TARGETS, adapter_tensors, add_adapters, load_adapter_tensors, merge_adapters

from ..families import IDS, TINY

if TYPE_CHECKING:
    from pathlib import Path

    from scfm._types import TokenBatch
    from scfm.model import FoundationModel

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft 0.21 on transformers 5.24
]
FAMILIES = [name for name, tiny in TINY.items() if "linear layers" in tiny.offers]
ALL = LoRA(rank=3, alpha=5.0, targets=tuple(TARGETS))
SOME = (LoRA(rank=2), LoRA(rank=3, targets=("key",)), LoRA(rank=1, targets=("output", "down")), ALL)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FoundationModel]:
    folder = tmp_path_factory.mktemp("models")
    return {name: TINY[name].load(folder / name) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, models: dict[str, FoundationModel]) -> FoundationModel:
    return models[request.param]


def batch_of(model: FoundationModel) -> tuple[TokenBatch, Any]:
    genes = model.vocabulary.genes[:60] if model.family == "scfm_mini" else IDS
    adata = scfm.datasets.synthetic(12, len(genes), genes_per_cell=15, genes=list(genes))
    with model.session(adata) as session:
        return next(iter(session.batches(12))), session.options


def outputs(model: FoundationModel, network: nn.Module) -> Tensor:
    batch, options = batch_of(model)
    return model.training_outputs(network, batch, options)[0]


def drawn(network: nn.Module, seed: int = 0) -> None:
    """Adapters that do something."""
    generator = torch.Generator().manual_seed(seed)
    parts = adapter_tensors(network)
    load_adapter_tensors(
        network, {name: 0.1 * torch.randn(part.shape, generator=generator) for name, part in parts.items()}
    )


def close(found: Tensor, expected: Tensor) -> None:
    """Equal within rounding of numbers of this size."""
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=0)


def off_blocks(network: Any, lora: LoRA) -> list[Tensor]:
    """Elements of the matrices B of fused layers that separate adapters do not have."""
    found = []
    for layer in network.layers if lora.fused else ():
        weight = getattr(layer, FUSED).lora_B["default"].weight.detach().clone()
        d = len(weight) // 3
        for at, target in enumerate(lora.fused):
            part = TARGETS[target][1]
            weight[part * d : (part + 1) * d, at * lora.rank : (at + 1) * lora.rank] = 0
        found.append(weight)
    return found


@pytest.mark.parametrize("lora", SOME, ids=lambda lora: "-".join(lora.targets))
def test_training_changes_adapters_alone(model: FoundationModel, lora: LoRA) -> None:
    network = model.training_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    plain = outputs(model, network).detach()
    torch.manual_seed(0)
    add_adapters(network, lora)
    close(outputs(model, network), plain)
    first = adapter_tensors(network)
    network = copy.deepcopy(network).train()  # copies are trained as the original is
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.002, weight_decay=0.1)
    goal = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(5):
        loss = (outputs(model, network) - goal).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = adapter_tensors(network)
    assert all(not torch.equal(after[name], first[name]) for name in first)
    assert all(not weight.any() for weight in off_blocks(network, lora))
    kept = {
        name.replace(".base_layer", ""): value for name, value in network.state_dict().items() if "lora_" not in name
    }
    assert kept.keys() == before.keys()
    assert all(torch.equal(kept[name], before[name]) for name in before)


@pytest.mark.parametrize("lora", SOME, ids=lambda lora: "-".join(lora.targets))
def test_merged_weights_do_what_the_adapters_did(model: FoundationModel, lora: LoRA) -> None:
    network = model.training_network().eval()
    published = {name: tensor.clone() for name, tensor in model.published_tensors(network).items()}
    plain = outputs(model, network).detach()
    names = [name for name, _ in network.named_modules()]
    add_adapters(network, lora)
    drawn(network)
    expected = outputs(model, network).detach()
    assert not torch.allclose(expected, plain, atol=1e-3)
    merge_adapters(network)
    close(outputs(model, network), expected)
    assert [name for name, _ in network.named_modules()] == names
    assert all(is_plain(module) for module in network.modules() if isinstance(module, nn.Linear))
    merged = model.published_tensors(network)
    assert merged.keys() == published.keys()
    changed = {name for name in merged if not torch.equal(merged[name], published[name])}
    linears: Any = network.published_linears
    layers = range(model.n_layers)
    assert changed == {f"{linears[target].format(i)}.weight" for target in lora.targets for i in layers}


@pytest.mark.parametrize("lora", SOME, ids=lambda lora: "-".join(lora.targets))
def test_saved_adapters_come_back_bit_by_bit(model: FoundationModel, lora: LoRA, tmp_path: Path) -> None:
    network, other = model.training_network().eval(), model.training_network().eval()
    other.load_state_dict(network.state_dict())
    add_adapters(network, lora)
    drawn(network)
    folder = save_adapters(network, tmp_path / "adapters")
    assert load_adapters(other, folder) == lora
    found, expected = adapter_tensors(other), adapter_tensors(network)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert torch.equal(outputs(model, other), outputs(model, network))
    assert not any(weight.any() for weight in off_blocks(other, lora))
    with pytest.raises(FileExistsError):
        save_adapters(network, folder)


def test_dropout_is_active_in_training_alone(model: FoundationModel) -> None:
    network = model.training_network()
    add_adapters(network, LoRA(dropout=0.5))
    drawn(network)
    network.eval()
    assert torch.equal(outputs(model, network), outputs(model, network))
    network.train()
    first, second = outputs(model, network), outputs(model, network)
    assert not torch.equal(first, second)
    first.square().sum().backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)


class Peer:
    """A tiny Geneformer, and the network of the transformers package with the same weights."""

    def __init__(self, folder: Path) -> None:
        write_geneformer(folder, n_genes=60, n_layers=2, max_tokens=24)
        self.model = scfm.model.load(folder)
        self.network: Any = self.model.training_network().eval()
        sizes = json.loads((folder / "config.json").read_text())
        config = transformers.BertConfig(**{name: value for name, value in sizes.items() if name != "architectures"})
        config._attn_implementation = "eager"
        self.peer: Any = transformers.BertModel(config, add_pooling_layer=False).eval()
        tensors = self.model.published_tensors(self.network)
        self.peer.load_state_dict(
            {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}, strict=False
        )

    def states(self, peer: Any) -> Tensor:
        """Hidden states of real tokens, cell by cell."""
        batch, _ = batch_of(self.model)
        cells = torch.from_numpy(batch.tokens).long().split(batch.lengths.tolist())
        return torch.cat([peer(cell[None]).last_hidden_state[0] for cell in cells])


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    return Peer(tmp_path / "model")


MODULES = {
    ("query", "value"): ["query", "value"],
    ("query", "key", "value", "output", "up", "down"): ["query", "key", "value", "dense"],
}


@pytest.mark.parametrize("targets", MODULES)
def test_adapters_are_those_of_peft(peer: Peer, targets: tuple[str, ...]) -> None:
    close(outputs(peer.model, peer.network), peer.states(peer.peer))
    add_adapters(peer.network, LoRA(rank=3, alpha=5.0, targets=targets))
    drawn(peer.network)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=MODULES[targets])
    adapted = peft.get_peft_model(peer.peer, config).eval()
    parts = {name.replace(".bert.", "."): part for name, part in adapter_tensors(peer.network).items()}
    loaded = peft.set_peft_model_state_dict(adapted, parts)
    assert not loaded.unexpected_keys
    found, expected = outputs(peer.model, peer.network), peer.states(adapted)
    close(found, expected)
    goal = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for states in (found, expected):
        ((states - goal) ** 2).mean().backward()
    with torch.no_grad():  # gradients in the place of weights, so that they are taken apart as weights are
        for parameter in (p for p in peer.network.parameters() if p.requires_grad):
            parameter.copy_(parameter.grad)
    ours = {name.replace(".bert.", "."): part for name, part in adapter_tensors(peer.network).items()}
    theirs = {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    theirs = {name.replace(".default", ""): gradient for name, gradient in theirs.items()}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert gradient.abs().max() > 1e-5, name
        torch.testing.assert_close(
            gradient, theirs[name], atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_folder_of_peft_is_loaded(peer: Peer, tmp_path: Path, head: bool, use_rslora: bool) -> None:
    base = peer.peer
    if head:
        base = transformers.BertForSequenceClassification(peer.peer.config).eval()
        base.bert.load_state_dict(peer.peer.state_dict(), strict=False)
    config = peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=["query", "output.dense"], use_rslora=use_rslora, init_lora_weights=False,
        modules_to_save=["classifier"] if head else None,
    )  # fmt: skip
    adapted = peft.get_peft_model(base, config).eval()
    adapted.save_pretrained(tmp_path / "adapters")
    lora = load_adapters(peer.network, tmp_path / "adapters")
    assert (lora.rank, lora.targets) == (4, ("query", "output", "down"))
    expected = peer.states(adapted.base_model.model.bert if head else adapted)
    close(outputs(peer.model, peer.network), expected)
    assert all(p.requires_grad == ("lora_" in name) for name, p in peer.network.named_parameters())


@pytest.mark.parametrize("lora", SOME, ids=lambda lora: "-".join(lora.targets))
def test_peft_loads_a_folder_of_ours(peer: Peer, tmp_path: Path, lora: LoRA) -> None:
    add_adapters(peer.network, lora)
    drawn(peer.network)
    folder = save_adapters(peer.network, tmp_path / "adapters", base=tmp_path / "model")
    whole = transformers.BertForSequenceClassification(peer.peer.config)
    whole.bert.load_state_dict(peer.peer.state_dict(), strict=False)
    adapted = peft.PeftModel.from_pretrained(whole, folder).eval()
    expected = outputs(peer.model, peer.network)
    close(peer.states(adapted.base_model.model.bert), expected)


def test_a_model_is_loaded_with_adapters_of_ours(peer: Peer, tmp_path: Path) -> None:
    add_adapters(peer.network, ALL)
    drawn(peer.network)
    save_adapters(peer.network, tmp_path / "adapters", base=tmp_path / "model")
    for path in (tmp_path / "model").glob("*.pkl"):
        (tmp_path / "adapters" / path.name).write_bytes(path.read_bytes())
    loaded = scfm.model.load(tmp_path / "adapters", dictionaries=tmp_path / "model")
    merge_adapters(peer.network)
    expected = peer.model.published_tensors(peer.network)
    found = loaded.published_tensors(loaded.training_network())
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)


def test_a_few_megabytes(tmp_path: Path) -> None:
    from scfm.nn import BertConfig, BertEncoder

    sizes = {"vocab_size": 100, "hidden_size": 768, "n_layers": 12, "n_heads": 12, "intermediate_size": 3072}
    network = BertEncoder(BertConfig(**sizes, max_positions=64, type_vocab_size=2))
    add_adapters(network, LoRA())
    save_adapters(network, tmp_path / "adapters")
    # two matrices of 768 × 8 float32 for each of two parts in each of 12 layers
    n_bytes = (tmp_path / "adapters" / "adapter_model.safetensors").stat().st_size
    assert 0 <= n_bytes - 12 * 2 * 2 * 768 * 8 * 4 < 10_000


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(next(iter(t))), "1 missing: bert.encoder.layer.0.attention.self.query.lora_A"),
        (lambda t: t.update({"bert.encoder.layer.9.output.dense.lora_A.weight": torch.ones(2, 8)}), "1 unexpected: bert.encoder.layer.9"),
        (lambda t: t.update({name: torch.ones(2, 3) for name in t}), r"rank 8 .*\(2, 3\), expected \(8, 16\)"),
        (lambda t: t.update({name.replace(".weight", ".other.weight"): one for name, one in list(t.items())}), "several adapters of one layer"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(peer: Peer, change: Any, match: str) -> None:
    add_adapters(peer.network, LoRA())
    tensors = adapter_tensors(peer.network)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    with pytest.raises(ValueError, match=match):
        load_adapter_tensors(peer.network, tensors)
    after = adapter_tensors(peer.network)
    assert all(torch.equal(after[name], before[name]) for name in before)


CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


@pytest.mark.parametrize(
    ("config", "names", "match"),
    [
        ({"peft_type": "IA3"}, "bert.encoder.layer.{}.attention.self.query", "peft_type='IA3'"),
        ({"r": None}, "bert.encoder.layer.{}.attention.self.query", "says r=None"),
        ({"alpha_pattern": {"query": 2}}, "bert.encoder.layer.{}.attention.self.query", "alpha_pattern="),
        ({}, "bert.encoder.layer.{}.attention.self.other", "no adapters of the layers of this network"),
        ({"r": 3}, "bert.encoder.layer.{}.attention.self.query", "adapters of rank 3"),
    ],
)
def test_folders_that_do_not_fit(peer: Peer, tmp_path: Path, config: Any, names: str, match: str) -> None:
    tensors = {}
    for layer in range(2):
        tensors[f"base_model.model.{names.format(layer)}.lora_A.weight"] = torch.ones(2, 16)
        tensors[f"base_model.model.{names.format(layer)}.lora_B.weight"] = torch.ones(16, 2)
    with pytest.raises(FileNotFoundError):
        load_adapters(peer.network, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    with pytest.raises(FileNotFoundError, match=r"holds no adapters; expected adapter_model.safetensors or"):
        load_adapters(peer.network, tmp_path)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=match):
        load_adapters(peer.network, tmp_path)


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ({"targets": ("query", "dense")}, ValueError, "'dense' is not known: adapters are for query, key, value, output, up, down"),
        ({"targets": ()}, ValueError, "targets is empty"),
        ({"targets": "query"}, TypeError, "targets must be a tuple of query, key"),
        ({"rank": 0}, ValueError, "rank must be a whole number of at least 1, got 0"),
        ({"rank": 2.0}, ValueError, "rank must be a whole number"),
        ({"alpha": 0}, ValueError, "alpha must be a positive number"),
        ({"alpha": float("nan")}, ValueError, "alpha must be a positive number"),
        ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and less than 1, got 1.0"),
        ({"dropout": "0"}, ValueError, "dropout must be"),
    ],
)  # fmt: skip
def test_values_that_make_no_adapters(values: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        LoRA(**values)


def test_networks_that_take_no_adapters(peer: Peer) -> None:
    with pytest.raises(TypeError, match="Linear does not say which linear layers it has"):
        add_adapters(nn.Linear(2, 2), LoRA())
    for call in (merge_adapters, adapter_tensors, lambda network: load_adapter_tensors(network, {})):
        with pytest.raises(ValueError, match="has no adapters; add_adapters"):
            call(peer.network)
    with pytest.raises(ValueError, match="has no layers"):
        add_adapters(peer.model.network(0), LoRA())
    add_adapters(peer.network, LoRA())
    with pytest.raises(ValueError, match="has adapters already; merge_adapters"):
        add_adapters(peer.network, LoRA())


def test_adapters_of_weights_that_are_no_numbers(peer: Peer) -> None:
    add_adapters(peer.network, LoRA())
    drawn(peer.network)
    peer.network.layers[1].qkv.base_layer.weight.data[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        merge_adapters(peer.network)


def test_files_hold_what_the_names_say(peer: Peer, tmp_path: Path) -> None:
    add_adapters(peer.network, LoRA(rank=2))
    drawn(peer.network)
    tensors = load_file(save_adapters(peer.network, tmp_path / "adapters") / "adapter_model.safetensors")
    layer = "base_model.model.bert.encoder.layer.1.attention.self"
    b = peer.network.layers[1].qkv.lora_B["default"].weight
    assert torch.equal(tensors[f"{layer}.query.lora_B.weight"], b[:16, :2])
    assert torch.equal(tensors[f"{layer}.value.lora_B.weight"], b[32:, 2:])
    assert len(tensors) == 8
