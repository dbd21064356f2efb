"""The encoder against ``transformers.BertForMaskedLM`` with the same random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from scfm.nn import BertConfig, BertEncoder, MaskedLMHead

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Peer = Callable[..., tuple[Any, BertConfig]]

LENGTHS = [24, 24, 24, 17, 17, 9, 1]
HIDDEN_ATOL = 1e-5
PATHS = ["cells", "padded"]

# (layers, hidden, heads, ffn, positions, vocabulary) of every published Geneformer
VARIANTS = {
    "V1-10M": (6, 256, 4, 512, 2048, 25426),
    "12L-30M": (12, 512, 8, 1024, 2048, 25426),
    "12L-95M": (12, 512, 8, 1024, 4096, 20275),
    "20L-95M": (20, 896, 14, 1792, 4096, 20275),
    "V2-104M": (12, 768, 12, 3072, 4096, 20275),
    "V2-316M": (18, 1152, 18, 4608, 4096, 20275),
}


def pad(tokens: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Token ids and mask as upstream pads them, both (cells, longest)."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.zeros_like(mask)
    ids[mask.bool()] = tokens
    return ids, mask


def draw_tokens(config: BertConfig, lengths: Sequence[int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, config.vocab_size, (sum(lengths),), generator=generator)


def reference(model: Any, tokens: Tensor, lengths: list[int]) -> tuple[list[Tensor], Tensor]:
    """Hidden states and logits of upstream, the padding cut away."""
    ids, mask = pad(tokens, lengths)
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return [state[mask.bool()] for state in out.hidden_states], out.logits[mask.bool()]


def encoder_like(model: Any, config: BertConfig, n_layers: int | None = None, **kwargs: Any) -> BertEncoder:
    with torch.device("meta"):  # no time spent on weights that are replaced
        encoder = BertEncoder(config, n_layers, **kwargs)
    encoder.load_published(model.state_dict())
    return encoder.eval()


def assert_close(ours: Tensor, theirs: Tensor, atol: float = HIDDEN_ATOL) -> None:
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_hidden_states_and_logits(peer: Peer, path: str, act: str) -> None:
    model, config = peer(hidden_act=act)
    tokens = draw_tokens(config, LENGTHS)
    states, logits = reference(model, tokens, LENGTHS)
    encoder = encoder_like(model, config, attention=path)
    head = MaskedLMHead(config)
    head.load_published(model.state_dict())
    with torch.no_grad():
        ours = encoder.hidden_states(tokens, LENGTHS)
        assert len(ours) == len(states) == config.n_layers + 1
        for mine, theirs in zip(ours, states, strict=True):
            assert_close(mine, theirs)
        assert_close(head(ours[-1], encoder.word_embeddings.weight), logits)


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_of_every_variant(peer: Peer, name: str) -> None:
    layers, hidden, heads, ffn, positions, vocab = VARIANTS[name]
    model, config = peer(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        max_position_embeddings=positions,
    )
    lengths = [19, 12, 12]
    tokens = draw_tokens(config, lengths)
    ids, mask = pad(tokens, lengths)
    with torch.no_grad():
        states = model.bert(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        encoder = encoder_like(model, config, layers - 1)
        assert_close(encoder(tokens, lengths), states[-2][mask.bool()])
        assert_close(encoder(tokens, lengths, first_only=True), states[-2][:, 0], 5e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n_layers", [0, 1, 2, 3])
def test_first_layers_and_first_token(peer: Peer, path: str, n_layers: int) -> None:
    model, config = peer()
    tokens = draw_tokens(config, LENGTHS)
    states, _ = reference(model, tokens, LENGTHS)
    encoder = encoder_like(model, config, n_layers, attention=path)
    starts = torch.tensor([0, *LENGTHS[:-1]]).cumsum(0)
    with torch.no_grad():
        hidden = encoder(tokens, LENGTHS)
        assert_close(hidden, states[n_layers])
        assert_close(encoder(tokens, LENGTHS, first_only=True), hidden[starts], 1e-6)
    assert len(encoder.layers) == n_layers


@pytest.mark.parametrize("first_only", [False, True])
def test_padded_path_equals_path_by_cells(peer: Peer, first_only: bool) -> None:
    _, config = peer()
    tokens = draw_tokens(config, LENGTHS)
    encoder = BertEncoder(config)
    with torch.no_grad():
        cells = encoder(tokens, LENGTHS, first_only=first_only)
        encoder.attention = "padded"
        assert_close(encoder(tokens, LENGTHS, first_only=first_only), cells, 2e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cell_does_not_see_the_others(peer: Peer, path: str, dtype: torch.dtype) -> None:
    _, config = peer()
    tokens = draw_tokens(config, LENGTHS)
    encoder = BertEncoder(config, attention=path).to(dtype)  # type: ignore[arg-type]
    atol = 1e-6 if dtype == torch.float32 else 0.05
    with torch.no_grad():
        together = encoder(tokens, LENGTHS).split(LENGTHS)
        for cell, hidden in zip(tokens.split(LENGTHS), together, strict=True):
            assert_close(encoder(cell, [len(cell)]), hidden, atol)


def test_cells_without_tokens(peer: Peer) -> None:
    _, config = peer()
    encoder = BertEncoder(config)
    tokens = draw_tokens(config, [5, 3])
    with torch.no_grad():
        for path in PATHS:
            encoder.attention = path  # type: ignore[assignment]
            assert_close(encoder(tokens, [0, 5, 0, 3, 0]), encoder(tokens, [5, 3]), 1e-6)
            assert encoder(tokens[:0], [0, 0]).shape == (0, config.hidden_size)
            assert encoder(tokens[:0], [], first_only=True).shape == (0, config.hidden_size)
            with pytest.raises(ValueError, match="Cell 1 of the batch has no token"):
                encoder(tokens, [5, 0, 3], first_only=True)


@pytest.mark.parametrize("as_type", ["numpy", "tensor"])
def test_lengths_as_array(peer: Peer, as_type: str) -> None:
    _, config = peer()
    encoder = BertEncoder(config)
    tokens = draw_tokens(config, LENGTHS)
    lengths = torch.tensor(LENGTHS)
    with torch.no_grad():
        ours = encoder(tokens, lengths.numpy() if as_type == "numpy" else lengths)
        assert_close(ours, encoder(tokens, LENGTHS), 0)


@pytest.mark.parametrize("path", PATHS)
def test_gradients(peer: Peer, path: str) -> None:
    model, config = peer()
    tokens = draw_tokens(config, LENGTHS)
    ids, mask = pad(tokens, LENGTHS)
    labels = tokens.roll(1)
    logits = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    torch.nn.functional.cross_entropy(logits, labels).backward()
    theirs = {name: p.grad for name, p in model.named_parameters()}

    encoder = encoder_like(model, config, attention=path)
    head = MaskedLMHead(config)
    head.load_published(model.state_dict())
    loss = torch.nn.functional.cross_entropy(head(encoder(tokens, LENGTHS), encoder.word_embeddings.weight), labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in encoder.parameters())

    assert_close(encoder.word_embeddings.weight.grad, theirs["bert.embeddings.word_embeddings.weight"], 1e-6)
    assert_close(encoder.position_embeddings.weight.grad, theirs["bert.embeddings.position_embeddings.weight"], 1e-6)
    assert_close(head.bias.grad, theirs["cls.predictions.bias"], 1e-6)
    for i, layer in enumerate(encoder.layers):
        name = f"bert.encoder.layer.{i}"
        parts = [theirs[f"{name}.attention.self.{part}.weight"] for part in ("query", "key", "value")]
        assert_close(layer.qkv.weight.grad, torch.cat(parts), 1e-6)
        assert_close(layer.down.weight.grad, theirs[f"{name}.output.dense.weight"], 1e-6)
        assert_close(layer.norm1.weight.grad, theirs[f"{name}.attention.output.LayerNorm.weight"], 1e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(peer: Peer, path: str, dtype: torch.dtype) -> None:
    # longer than one tile of queries and one piece of the feed-forward block
    lengths = [1100, 1100, 70]
    model, config = peer(max_position_embeddings=1100)
    tokens = draw_tokens(config, lengths)
    encoder = encoder_like(model, config, attention=path)
    with torch.no_grad():
        exact = encoder(tokens, lengths)
        first = encoder(tokens, lengths, first_only=True)
        encoder.to(dtype)
        low = encoder(tokens, lengths)
        assert low.dtype == dtype
        assert torch.cosine_similarity(low.float(), exact, dim=1).min() > 0.9995
        low_first = encoder(tokens, lengths, first_only=True).float()
        assert torch.cosine_similarity(low_first, first, dim=1).min() > 0.9995


def test_inference_mode_equals_grad_mode(peer: Peer) -> None:
    _, config = peer(max_position_embeddings=1100)
    lengths = [1100, 900, 5]
    tokens = draw_tokens(config, lengths)
    encoder = BertEncoder(config)
    with_grad = encoder(tokens, lengths).detach()
    with torch.inference_mode():
        assert_close(encoder(tokens, lengths), with_grad, 2e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda(peer: Peer, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    _, config = peer()
    tokens = draw_tokens(config, LENGTHS)
    encoder = BertEncoder(config)
    with torch.no_grad():
        exact = encoder(tokens, LENGTHS)
        encoder.to("cuda", dtype)
        for ours, theirs in (
            (encoder(tokens, LENGTHS), exact),
            (encoder(tokens, LENGTHS, first_only=True), encoder.float().cpu()(tokens, LENGTHS, first_only=True)),
        ):
            assert torch.cosine_similarity(ours.float().cpu(), theirs, dim=1).min() > 0.9995
            encoder.to("cuda", dtype)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3, 3], "lengths sum to 6, but tokens have shape \\(5,\\)"),
        ([8, -3], "must not be negative, got -3"),
    ],
)
def test_lengths_that_do_not_fit(peer: Peer, lengths: list[int], message: str) -> None:
    _, config = peer()
    with pytest.raises(ValueError, match=message):
        BertEncoder(config)(draw_tokens(config, [5]), lengths)


def test_too_many_tokens(peer: Peer) -> None:
    _, config = peer()
    with pytest.raises(ValueError, match="A cell has 33 tokens, the model has 32 positions"):
        BertEncoder(config)(draw_tokens(config, [33]), [33])


@pytest.mark.parametrize("n_layers", [-1, 4])
def test_number_of_layers(peer: Peer, n_layers: int) -> None:
    _, config = peer()
    with pytest.raises(ValueError, match=f"n_layers must be between 0 and 3, got {n_layers}"):
        BertEncoder(config, n_layers)
