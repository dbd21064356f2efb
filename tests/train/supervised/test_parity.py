"""Losses and gradients of the published heads equal those of transformers on the same weights."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from scfm.train import CellClassifier, GeneClassifier

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm.model import FoundationModel

transformers = pytest.importorskip("transformers")
HOW = {"batch_tokens": None, "accelerator": "cpu", "balanced": False, "cache": None}


def bert(tiny: FoundationModel, kind: str, n_labels: int) -> Any:
    """A transformers model with the weights of ours."""
    config = tiny.config
    made = getattr(transformers, kind)(
        transformers.BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_positions,
            hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=n_labels,
            attn_implementation="eager",
        )
    )
    own = {name: tensor for name, tensor in tiny.tensors.items() if name.startswith("bert.")}
    missing, unexpected = made.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(name.startswith(("classifier", "bert.pooler")) for name in missing)
    return made


def padded(batch: Any, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and attention mask, cells × longest."""
    cells = np.split(batch.tokens, batch.lengths.cumsum()[:-1])
    tokens = np.full((len(cells), batch.lengths.max()), pad)
    for row, cell in enumerate(cells):
        tokens[row, : len(cell)] = cell
    mask = np.arange(tokens.shape[1])[None] < batch.lengths[:, None]
    return torch.from_numpy(tokens), torch.from_numpy(mask.astype(np.int64))


def gradients(model: Any, network: Any, head: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of gradients: theirs and ours."""
    theirs = dict(model.named_parameters())
    layer = network.layers[1]
    pairs = {
        "words": (theirs["bert.embeddings.word_embeddings.weight"], network.word_embeddings.weight),
        "down": (theirs["bert.encoder.layer.1.output.dense.weight"], layer.down.weight),
        "norm": (theirs["bert.encoder.layer.0.output.LayerNorm.weight"], network.layers[0].norm2.weight),
        **{name: (theirs[name], own) for name, own in head.items()},
    }
    found = {name: (one.grad, other.grad) for name, (one, other) in pairs.items()}
    query = theirs["bert.encoder.layer.1.attention.self.query.weight"].grad
    found["query"] = (query, layer.qkv.weight.grad[: len(query)])
    return found


def test_cells_as_bert_for_sequence_classification(cells: AnnData, tiny: FoundationModel) -> None:
    CellClassifier.setup_anndata(cells, "kind")
    model: Any = CellClassifier(cells, tiny, head="bert", dropout=0.0)
    model.module = model.new_module()
    with ExitStack() as stack:
        prepared = model._prepare(stack, (0.9, 0.1), None, 0, **HOW)
        (part,) = prepared.training.parts(np.arange(12))
    peer = bert(tiny, "BertForSequenceClassification", 3)
    head = model.module.head
    own = {
        "bert.pooler.dense.weight": head.reader.dense.weight,
        "bert.pooler.dense.bias": head.reader.dense.bias,
        "classifier.weight": head.layers[0].weight,
        "classifier.bias": head.layers[0].bias,
    }
    peer.load_state_dict(own, strict=False)
    tokens, mask = padded(part.inputs)
    labels = torch.from_numpy(part.targets["kind"])
    expected = peer(input_ids=tokens, attention_mask=mask, labels=labels).loss
    expected.backward()

    scores = model.module(part.inputs)["kind"]
    target = model.targets["kind"]
    loss = target.loss(scores, labels) / target.count(labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for name, (theirs, ours) in gradients(peer, model.module.network, own).items():
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4, msg=name)


def test_genes_as_bert_for_token_classification(cells: AnnData, tiny: FoundationModel) -> None:
    sets = {"first": cells.var_names[:10].tolist(), "second": cells.var_names[10:20].tolist()}
    GeneClassifier.setup_anndata(cells)
    model: Any = GeneClassifier(cells, sets, tiny, dropout=0.0)
    model.module = model.new_module()
    with ExitStack() as stack:
        prepared = model._prepare(stack, (0.7, 0.3), None, 0, **HOW)
        (part,) = prepared.training.parts(np.arange(12))
    peer = bert(tiny, "BertForTokenClassification", 2)
    head = model.module.head
    own = {"classifier.weight": head.layers[0].weight, "classifier.bias": head.layers[0].bias}
    peer.load_state_dict(own, strict=False)
    tokens, mask = padded(part.inputs)
    codes = torch.from_numpy(part.targets["gene_class"])
    assert 0 < (codes >= 0).sum() < len(codes)  # genes of neither class, and those that judge, are left out
    labels = torch.full(tokens.shape, -100)
    labels[mask.bool()] = torch.where(codes >= 0, codes, -100)
    expected = peer(input_ids=tokens, attention_mask=mask, labels=labels).loss
    expected.backward()

    target = model.targets["gene_class"]
    loss = target.loss(model.module(part.inputs)["gene_class"], codes) / target.count(codes)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for name, (theirs, ours) in gradients(peer, model.module.network, own).items():
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4, msg=name)
