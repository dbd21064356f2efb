"""Hooks, adapters and quantised weights take effect in every network, whichever linear layer they are at."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from scfm.nn import BertLayer, MaskedLMHead, ProjectionHead, ScCelloNetwork, TranscriptFormerHeads, pool_mean
from scfm.nn.linear import affine, is_plain
from scfm.nn.masking import masked_outputs
from scfm.nn.transcriptformer import TranscriptFormerLayer
from scfm.testing import write_transcriptformer

from ..families import TINY, Tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scfm.model import FoundationModel

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = [20, 20, 20, 19, 18, *[17] * 9, 10, 1]  # more than 256 tokens, which a plain layer sends to oneDNN
RANK = 2


@dataclass(frozen=True)
class Net:
    """A network with its heads, and all that is computed by them."""

    modules: nn.ModuleDict
    passes: dict[str, tuple[tuple[str, ...], Callable[[], Tensor]]]
    """For each pass the names that the linear layers which it reads start with, and the pass."""

    def linears(self, start: tuple[str, ...] = ("",)) -> dict[str, nn.Linear]:
        found = {name: module for name, module in self.modules.named_modules() if isinstance(module, nn.Linear)}
        return {name: module for name, module in found.items() if name.startswith(start)}

    def run(self, names: set[str] | None = None) -> dict[str, Tensor]:
        return {name: run() for name, (_, run) in self.passes.items() if names is None or name in names}

    def readers(self, linear: str) -> set[str]:
        return {name for name, (start, _) in self.passes.items() if linear.startswith(start)}


def bert(model: FoundationModel) -> Net:
    network: Any = model.network(model.n_layers)
    config = network.config
    if isinstance(network, ScCelloNetwork):
        network.gene_head = ProjectionHead(config.hidden_size)
    modules = nn.ModuleDict({"network": network, "head": MaskedLMHead(config)}).eval()
    torch.manual_seed(0)
    tokens = torch.randint(4, config.vocab_size, (sum(LENGTHS),))
    cells = [(cell, torch.arange(0, len(cell), 9)) for cell in tokens.split(LENGTHS)]

    def masked(first_only: bool) -> Tensor:
        pool = (lambda hidden, _: hidden) if first_only else pool_mean
        return torch.cat(masked_outputs(network, cells, 1, pool, first_only=first_only, max_tokens=700))

    layers = ("network.layers",)
    passes: dict[str, Any] = {
        "all": (layers, lambda: network(tokens, LENGTHS)),
        "first": (layers, lambda: network(tokens, LENGTHS, first_only=True)),
        "masked": (layers, lambda: masked(False)),
        "masked first": (layers, lambda: masked(True)),
        "head": (("head",), lambda: modules["head"](network(tokens, LENGTHS), network.word_embeddings.weight)),
    }
    if isinstance(network, ScCelloNetwork):
        passes["cell"] = ("network.cell_head",), lambda: network.cell_head(network(tokens, LENGTHS, first_only=True))
        passes["gene"] = ("network.gene_head",), lambda: network.gene_head(network.word_embeddings.weight)
    return Net(modules, passes)


def transcriptformer(model: FoundationModel) -> Net:
    network: Any = model.network(model.n_layers)
    config = network.config
    heads = TranscriptFormerHeads(config)
    heads.load_published(model.tensors)
    modules = nn.ModuleDict({"network": network, "heads": heads}).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(7, config.vocab_size, (sum(LENGTHS),), generator=generator)
    tokens[::50] = config.vocab_size  # an assay
    genes = tokens.clamp(max=config.vocab_size - 1)
    counts = torch.randint(1, 9, (sum(LENGTHS),), generator=generator).float()

    def states() -> Tensor:
        return network(tokens, counts, LENGTHS)

    def expected() -> Tensor:
        return heads.expected_counts(states(), genes, network.gene_states(genes), counts, LENGTHS)

    return Net(
        modules,
        {
            "states": (("network",), states),
            "counts": (("network", "heads.count_mlp"), expected),
            "genes": (("network", "heads.gene_mlp"), lambda: heads.gene_log_likelihood(states(), genes)),
        },
    )


NETWORKS = {name: tiny for name, tiny in TINY.items() if "linear layers" in tiny.offers}
NETWORKS["TranscriptFormer with biases"] = Tiny(
    "transcriptformer", partial(write_transcriptformer, attn_bias=True, fw_bias=True)
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FoundationModel]:
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.load(folder / name) for name, tiny in NETWORKS.items()}


@pytest.fixture(params=NETWORKS)
def net(request: pytest.FixtureRequest, models: dict[str, FoundationModel]) -> Net:
    model = models[request.param]
    return transcriptformer(model) if model.family == "transcriptformer" else bert(model)


class LoRA(nn.Module):
    """A linear layer with a low-rank update beside it, and no other attribute of a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        generator = torch.Generator().manual_seed(1)
        self.a = nn.Parameter(torch.randn(RANK, base.in_features, generator=generator) / math.sqrt(base.in_features))
        self.b = nn.Parameter(torch.randn(base.out_features, RANK, generator=generator) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T

    def merged(self) -> nn.Linear:
        base = self.base
        merged = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
        merged.load_state_dict(
            {**base.state_dict(), "weight": base.weight.detach() + self.b.detach() @ self.a.detach()}
        )
        return merged


def changed(x: Tensor) -> Tensor:
    """Something that no norm takes back."""
    return 1.5 * x.roll(1, dims=-1)


class Changed(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return changed(weight)


@contextmanager
def replaced(net: Net, name: str, module: nn.Module) -> Iterator[None]:
    before = net.modules.get_submodule(name)
    net.modules.set_submodule(name, module)
    yield
    net.modules.set_submodule(name, before)


@contextmanager
def hooked(net: Net, name: str, before: bool) -> Iterator[None]:
    linear = net.modules.get_submodule(name)
    if before:
        handle = linear.register_forward_pre_hook(lambda _, args: (changed(args[0]),))
    else:
        handle = linear.register_forward_hook(lambda _, args, output: changed(output))
    yield
    handle.remove()


@contextmanager
def overridden(net: Net, name: str) -> Iterator[None]:
    linear: Any = net.modules.get_submodule(name)
    forward = linear.forward
    linear.forward = lambda x: forward(changed(x))
    yield
    del linear.forward


@contextmanager
def parametrised(net: Net, name: str) -> Iterator[None]:
    linear = net.modules.get_submodule(name)
    parametrize.register_parametrization(linear, "weight", Changed())
    yield
    parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)


CHANGES: dict[str, Callable[[Net, str], Any]] = {
    "hook": lambda net, name: hooked(net, name, before=False),
    "pre-hook": lambda net, name: hooked(net, name, before=True),
    "forward": overridden,
    "parametrisation": parametrised,
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("everywhere", [False, True])
def test_hooks_fire_at_every_layer(net: Net, grad: bool, everywhere: bool) -> None:
    called: set[str] = set()
    kinds = (nn.Linear, BertLayer, TranscriptFormerLayer)
    names = {module: name for name, module in net.modules.named_modules() if isinstance(module, kinds)}

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        called.update([names[module]] if module in names else [])

    with torch.set_grad_enabled(grad):
        net.run()  # rows of genes may now be kept
        handles = [register_module_forward_hook(note)] if everywhere else []
        handles += [] if everywhere else [module.register_forward_hook(note) for module in names]
        used = set()
        for start, run in net.passes.values():
            called.clear()
            run()
            assert called >= {name for name in names.values() if name.startswith(start)}
            used |= called
        for handle in handles:
            handle.remove()
    assert used == set(names.values())


def test_what_a_hook_is_given_stays_as_it_was(net: Net) -> None:
    given: list[tuple[Tensor, Tensor]] = []
    for linear in net.linears().values():
        linear.register_forward_hook(lambda _, args, output: given.extend((t, t.clone()) for t in (args[0], output)))
    with torch.no_grad():
        net.run()
    assert given
    assert all(torch.equal(tensor, copy) for tensor, copy in given)


@pytest.mark.parametrize("change", CHANGES)
def test_changes_take_effect_at_every_layer(net: Net, change: str) -> None:
    with torch.inference_mode():
        plain = net.run()
        for name in net.linears():
            readers = net.readers(name)
            assert readers
            with CHANGES[change](net, name):
                for key, output in net.run(readers).items():
                    assert not torch.allclose(output, plain[key], atol=1e-4), (name, key)
        after = net.run()
    for key, output in after.items():
        torch.testing.assert_close(output, plain[key], atol=1e-6, rtol=1e-6)  # a parametrised weight is put back


def test_an_adapter_does_what_merged_weights_do(net: Net) -> None:
    with torch.inference_mode():
        plain = net.run()
    for name, linear in net.linears().items():
        adapter = LoRA(linear)
        with torch.inference_mode(), replaced(net, name, adapter):
            adapted = net.run(net.readers(name))
        with torch.inference_mode(), replaced(net, name, adapter.merged()):
            merged = net.run(net.readers(name))
        for key, output in adapted.items():
            assert not torch.allclose(output, plain[key], atol=1e-4), (name, key)
            torch.testing.assert_close(output, merged[key], atol=5e-5, rtol=1e-4)


def test_an_adapter_is_trained(net: Net) -> None:
    net.modules.requires_grad_(False)
    for name, linear in net.linears().items():
        for key in net.readers(name):
            adapter = LoRA(linear)
            with replaced(net, name, adapter):
                net.passes[key][1]().square().sum().backward()
            assert adapter.a.grad is not None, (name, key)
            assert adapter.b.grad is not None, (name, key)
            assert adapter.a.grad.abs().max() > 0, (name, key)
            assert adapter.b.grad.abs().max() > 0, (name, key)


def test_quantised_weights_are_read(net: Net) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    with torch.inference_mode():
        plain = net.run()
    quantize_(net.modules, Int8WeightOnlyConfig())
    assert all(type(linear) is nn.Linear and not is_plain(linear) for linear in net.linears().values())
    with torch.inference_mode():
        quantised = net.run()
    for key, output in quantised.items():
        error = (output - plain[key]).norm() / plain[key].norm()
        assert 0 < error < 0.1, key


def test_affine_under_autocast() -> None:
    layer, x = nn.Linear(8, 4), torch.randn(300, 8)
    with torch.no_grad():
        expected = affine(x, layer.weight, layer.bias, "relu")
        with torch.autocast("cpu", torch.bfloat16):
            found = [affine(one, layer.weight, layer.bias, "relu") for one in (x, x.bfloat16())]
    for one in found:
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), expected, rtol=0.02, atol=0.02)
