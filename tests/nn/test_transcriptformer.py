"""The network, its table of gene states and its heads against the obvious versions of ``scfm.testing``."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from scfm.nn import (
    TranscriptFormer,
    TranscriptFormerConfig,
    TranscriptFormerHeads,
    transcriptformer,
    transcriptformer_heads,
)
from scfm.testing import (
    TranscriptFormerOracle,
    transcriptformer_scores,
    transcriptformer_states,
    write_transcriptformer,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")
ATOL = 2e-5
SIZES = {"vocab_size": 67, "n_assays": 3, "gene_vector_size": 12}


@dataclass
class Checkpoint:
    """A random checkpoint in the published layout, with five cells for it."""

    folder: Path

    @cached_property
    def oracle(self) -> TranscriptFormerOracle:
        return TranscriptFormerOracle.load(self.folder)

    @cached_property
    def published(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return content

    @cached_property
    def config(self) -> TranscriptFormerConfig:
        return TranscriptFormerConfig.from_dict(self.published, **SIZES)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = torch.load(self.folder / "model_weights.pt", weights_only=True)
        return tensors

    def network(self, n_layers: int | None = None) -> TranscriptFormer:
        with torch.device("meta"):
            network = TranscriptFormer(self.config, n_layers)
        network.load_published(self.tensors)
        return network.eval()

    def heads(self, config: TranscriptFormerConfig | None = None) -> TranscriptFormerHeads:
        with torch.device("meta"):
            heads = TranscriptFormerHeads(config or self.config)
        heads.load_published(self.tensors)
        return heads.eval()

    @cached_property
    def cells(self) -> list[tuple[list[int], list[float], int]]:
        """Genes, counts and assay; 0 is an unknown one."""
        rng = np.random.default_rng(0)
        cells = []
        for n_genes, assay in ((20, 1), (5, 0), (0, 2), (13, 2), (1, 0)):
            genes = 7 + rng.permutation(60)[:n_genes]
            cells.append((genes.tolist(), np.round(rng.exponential(6, n_genes), 2).tolist(), assay))
        return cells

    @cached_property
    def packed(self) -> tuple[Tensor, Tensor, list[int]]:
        tokens, counts, lengths = [], [], []
        for genes, of_genes, assay in self.cells:
            head = [67 + assay, 2] if assay else [2]
            tokens += [*head, *genes]
            counts += [1.0] * len(head) + of_genes
            lengths.append(len(head) + len(genes))
        return torch.tensor(tokens), torch.tensor(counts), lengths

    def expected(self, n_layers: int | None = None) -> list[Tensor]:
        options: dict[str, Any] = {"n_layers": n_layers, "read_all": True}
        return [transcriptformer_states(self.oracle, *cell, **options) for cell in self.cells]


KINDS: dict[str, dict[str, Any]] = {
    "published": {},
    "biased": {"attn_bias": True, "fw_bias": True},
    "attn_bias": {"attn_bias": True},
    "uncapped": {"softcap": 0, "n_heads": 4},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("transcriptformer")
    return {name: Checkpoint(write_transcriptformer(folder / name, **kind)) for name, kind in KINDS.items()}


@pytest.fixture(params=KINDS)
def checkpoint(request: pytest.FixtureRequest, checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    return checkpoints[request.param]


@pytest.fixture
def plain(checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    return checkpoints["published"]


def assert_close(ours: Any, theirs: Any, atol: float = ATOL, rtol: float = 0.0) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), atol=atol, rtol=rtol)


def without_assays(states: Tensor, cells: Checkpoint) -> list[Tensor]:
    parts = states.split(cells.packed[2])
    return [part[1:] if cell[2] else part for part, cell in zip(parts, cells.cells, strict=True)]


@pytest.mark.parametrize("n_layers", [0, 1, 2])
def test_states_of_every_layer(checkpoint: Checkpoint, n_layers: int) -> None:
    network = checkpoint.network(n_layers)
    assert len(network.layers) == n_layers
    with torch.inference_mode():
        states = without_assays(network(*checkpoint.packed), checkpoint)
    for ours, theirs in zip(states, checkpoint.expected(n_layers), strict=True):
        assert ours.dtype == torch.float32
        assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # compiled on CUDA only
def test_flex_attention(plain: Checkpoint) -> None:
    pytest.importorskip("torch.nn.attention.flex_attention")
    network = plain.network()
    network.attention = "flex"
    with torch.inference_mode():
        states = without_assays(network(*plain.packed), plain)
    assert_close(torch.cat(states), torch.cat(plain.expected()))


def test_a_cell_does_not_see_the_others(checkpoint: Checkpoint) -> None:
    network = checkpoint.network()
    tokens, counts, lengths = checkpoint.packed
    with torch.inference_mode():
        together = network(tokens, counts, lengths).split(lengths)
        for cell in zip(tokens.split(lengths), counts.split(lengths), together, strict=True):
            assert_close(network(*cell[:2], [len(cell[0])]), cell[2], 5e-6)


@pytest.mark.parametrize("kind", ["numpy", "tensor"])
def test_lengths_as_array(plain: Checkpoint, kind: str) -> None:
    tokens, counts, lengths = plain.packed
    array = torch.tensor(lengths).numpy() if kind == "numpy" else torch.tensor(lengths)
    network = plain.network()
    with torch.inference_mode():
        assert torch.equal(network(tokens, counts, array), network(tokens, counts, lengths))


def test_batches_without_tokens(plain: Checkpoint) -> None:
    network = plain.network()
    with torch.inference_mode():
        for lengths in ([], [0, 0]):
            assert network(torch.empty(0, dtype=torch.int64), torch.empty(0), lengths).shape == (0, 16)


def test_cells_without_tokens(plain: Checkpoint) -> None:
    network = plain.network()
    tokens, counts, lengths = plain.packed
    with torch.inference_mode():
        assert_close(network(tokens, counts, [0, *lengths, 0]), network(tokens, counts, lengths), 1e-6)


def test_pieces_of_the_feed_forward_block(plain: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcriptformer, "CHUNK", 7)
    with torch.inference_mode():
        assert_close(torch.cat(without_assays(plain.network()(*plain.packed), plain)), torch.cat(plain.expected()))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.3), (torch.float16, 0.04)])
def test_low_precision(plain: Checkpoint, dtype: torch.dtype, atol: float) -> None:
    network = plain.network().to(dtype)
    with torch.inference_mode():
        states = network(*plain.packed)
    assert states.dtype == dtype
    ours, theirs = torch.cat(without_assays(states, plain)), torch.cat(plain.expected())
    assert_close(ours, theirs, atol)
    assert torch.cosine_similarity(ours.double(), theirs, dim=1).min() > 0.998


def test_values_with_and_without_gradients(checkpoint: Checkpoint) -> None:
    network = checkpoint.network()
    states = network(*checkpoint.packed)
    assert states.requires_grad
    with torch.inference_mode():
        assert_close(network(*checkpoint.packed), states.detach(), 5e-6)


@pytest.mark.parametrize("n_layers", [0, 2])
def test_gradients(checkpoint: Checkpoint, n_layers: int) -> None:
    network = checkpoint.network(n_layers)
    weights = torch.linspace(-1, 1, 16)
    states = without_assays(network(*checkpoint.packed), checkpoint)
    (torch.cat(states) * weights).sum().backward()

    tensors = {name: tensor.clone().requires_grad_() for name, tensor in checkpoint.oracle.tensors.items()}
    oracle = replace(checkpoint.oracle, tensors=tensors)
    options: dict[str, Any] = {"n_layers": n_layers, "read_all": True}
    expected = [transcriptformer_states(oracle, *cell, **options) for cell in checkpoint.cells]
    (torch.cat(expected) * weights).sum().backward()
    found = transcriptformer._targets(copy_of_gradients(network))
    for name in ("gene_embeddings.mlp.layers.0.weight", "gene_embeddings.mlp.layers.4.bias"):
        assert found[name].abs().max() > 0
    for name, gradient in found.items():
        theirs = tensors[name].grad
        assert_close(gradient, torch.zeros(gradient.shape) if theirs is None else theirs, 1e-4, 1e-4)


def copy_of_gradients(network: TranscriptFormer) -> TranscriptFormer:
    """A network whose weights are the gradients of this one, so that they have published names."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for mine, theirs in zip(copied.parameters(), network.parameters(), strict=True):
            mine.copy_(torch.zeros_like(theirs) if theirs.grad is None else theirs.grad)
    return copied


def test_states_of_genes_follow_the_weights(plain: Checkpoint) -> None:
    """Evaluated, trained a step, evaluated."""
    network = plain.network(0)
    with torch.inference_mode():
        network(*plain.packed)
    with torch.no_grad():
        network.gene_mlp.down.bias.add_(1)
    expected = network(*plain.packed).detach()
    with torch.inference_mode():
        assert_close(network(*plain.packed), expected, 1e-5)


def test_states_of_genes_follow_the_dtype(plain: Checkpoint) -> None:
    network = plain.network()
    with torch.inference_mode():
        network(*plain.packed)
        assert network.to(torch.bfloat16)(*plain.packed).dtype == torch.bfloat16


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("token", [-1, 70, 1000])
def test_unknown_tokens(plain: Checkpoint, token: int, mode: Callable[[], Any]) -> None:
    with mode(), pytest.raises(IndexError):
        plain.network(0)(torch.tensor([2, token]), torch.ones(2), [2])


@pytest.mark.parametrize(
    ("tokens", "counts", "lengths", "message"),
    [
        ([2, 7], [1, 1], [3], r"lengths sum to 3, but tokens have shape \(2,\)"),
        ([2, 7], [1], [2], r"counts \(1,\)"),
        ([[2, 7]], [[1, 1]], [2], r"shape \(1, 2\)"),
        ([2, 7], [1, 1], [3, -1], "must not be negative, got -1"),
    ],
)
def test_arguments_that_do_not_fit(plain: Checkpoint, tokens: Any, counts: Any, lengths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain.network(0)(torch.tensor(tokens), torch.tensor(counts), lengths)


@pytest.mark.parametrize("n_layers", [-1, 3])
def test_number_of_layers(plain: Checkpoint, n_layers: int) -> None:
    with pytest.raises(ValueError, match=f"n_layers must be between 0 and 2, got {n_layers}"):
        TranscriptFormer(plain.config, n_layers)


def seen_before(cells: Checkpoint) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """State before each gene, gene, count, and genes of each cell."""
    states = [of_cell[: len(cell[0])] for of_cell, cell in zip(cells.expected(), cells.cells, strict=True)]
    genes = torch.tensor([gene for cell in cells.cells for gene in cell[0]])
    counts = torch.tensor([count for cell in cells.cells for count in cell[1]])
    return torch.cat(states).float(), genes, counts, [len(cell[0]) for cell in cells.cells]


@pytest.mark.parametrize("softplus_approx", [True, False])
@pytest.mark.parametrize("chunk", [None, 1, 7, 39])
def test_heads(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, chunk: int | None, softplus_approx: bool
) -> None:
    if chunk:
        monkeypatch.setattr(transcriptformer_heads, "VOCABULARY_CHUNK", 2 * chunk)
        monkeypatch.setattr(transcriptformer_heads, "TOKEN_CHUNK", chunk)
    states, genes, counts, lengths = seen_before(checkpoint)
    heads = checkpoint.heads(replace(checkpoint.config, softplus_approx=softplus_approx))
    with torch.inference_mode():
        mu = heads.expected_counts(states, genes, checkpoint.network(0).gene_states(genes), counts, lengths)
        found = [mu, heads.count_log_likelihood(mu, counts, 12), heads.gene_log_likelihood(states, genes)]
    assert all(part.shape == genes.shape and part.dtype == torch.float32 for part in found)
    loss = {**checkpoint.oracle.config["loss_config"], "softplus_approx": softplus_approx}
    oracle = replace(checkpoint.oracle, config={**checkpoint.oracle.config, "loss_config": loss})
    options: dict[str, Any] = {"clip_counts": 12, "forced_last": False}
    scores = [transcriptformer_scores(oracle, *cell, **options) for cell in checkpoint.cells]
    expected = [torch.cat(parts) for parts in zip(*scores, strict=True)]
    assert (expected[0] > 5).any(), "the exact likelihood is approximated above 5"
    for ours, theirs, sign in zip(found, expected, (1, -1, -1), strict=True):
        assert_close(sign * ours, theirs, 5e-5, 2e-5)


def test_scores_without_a_clip_and_without_genes(plain: Checkpoint) -> None:
    heads = plain.heads()
    nothing, genes = torch.empty(0), torch.empty(0, dtype=torch.int64)
    with torch.inference_mode():
        assert heads.expected_counts(torch.empty(0, 16), genes, torch.empty(0, 16), nothing, [0]).shape == (0,)
        assert heads.gene_log_likelihood(torch.empty(0, 16), genes).shape == (0,)
        rates, counts = torch.full((3,), 40.0), torch.tensor([30.0, 50, 90])
        free, clipped = (heads.count_log_likelihood(rates, counts, clip) for clip in (0, 30))
    exact = torch.distributions.Poisson(rates).log_prob(counts)  # zero is as good as impossible
    assert_close(free, exact, 1e-3)
    assert_close(clipped, exact[[0, 0, 0]], 1e-3)


def test_gradients_of_the_heads(plain: Checkpoint) -> None:
    states, genes, counts, lengths = seen_before(plain)
    heads, network = plain.heads(), plain.network(0)
    mu = heads.expected_counts(states, genes, network.gene_states(genes), counts, lengths)
    (heads.count_log_likelihood(mu, counts, 30).sum() + heads.gene_log_likelihood(states, genes).sum()).backward()
    parts = [*heads.parameters(), *network.gene_mlp.parameters()]
    assert all(part.grad is not None and part.grad.isfinite().all() for part in parts)
