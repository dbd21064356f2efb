"""Heads of published fine-tuned models predict what the transformers package computes with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import scfm
from scfm.testing import write_geneformer
from scfm.train import CellClassifier, GeneClassifier, MultiTaskClassifier

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

transformers = pytest.importorskip("transformers")
LABELS = {0: "zeta", 1: "alpha", 2: "mid, or between"}
N_GENES, WIDTH = 40, 16


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    return write_geneformer(tmp_path / "tables", n_genes=N_GENES, n_layers=2, max_tokens=32)


def published(tables: Path, folder: Path, kind: str) -> Any:
    """A model with random weights, saved as the transformers package does."""
    sizes = json.loads((tables / "config.json").read_text())
    config = transformers.BertConfig(**{name: value for name, value in sizes.items() if name != "architectures"})
    config.id2label, config.label2id = LABELS, {label: number for number, label in LABELS.items()}
    torch.manual_seed(1)
    model = getattr(transformers, kind)(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def tokens_of(folder: Path, cells: AnnData) -> list[torch.Tensor]:
    """Tokens of each cell, shape ``(1, n)``."""
    with scfm.model.load(folder).session(cells) as session:
        block = session.encoder()(next(iter(session.source.blocks())))
    ends = zip(block.offsets[:-1], block.offsets[1:], strict=True)
    return [torch.from_numpy(block.tokens[a:b])[None].long() for a, b in ends]


def converted(tables: Path, tmp_path: Path) -> Path:
    folder: Path = scfm.model.convert(tmp_path / "tuned", tmp_path / "converted", dictionaries=tables)
    return folder


def test_classes_of_cells(tables: Path, cells: AnnData, tmp_path: Path) -> None:
    peer = published(tables, tmp_path / "tuned", "BertForSequenceClassification")
    folder, few = converted(tables, tmp_path), cells[:8].copy()
    with torch.no_grad():
        shares = [peer(one).logits.softmax(dim=1)[0].numpy() for one in tokens_of(folder, few)]
    for model in (CellClassifier.load(folder), scfm.train.load(folder)):
        assert isinstance(model, CellClassifier)
        found = model.predict(few)
        columns = [
            f"probability_{label}" for label in LABELS.values()
        ]  # in the order of the outputs, not of the alphabet
        assert found.columns.tolist() == ["label", "score", *columns]
        np.testing.assert_allclose(found[columns], shares, atol=1e-5)
        assert found["label"].tolist() == [LABELS[int(one.argmax())] for one in shares]
    scfm.tl.predict(few, folder)
    np.testing.assert_allclose(few.obsm["prediction_probabilities"], shares, atol=1e-5)
    model.save(tmp_path / "saved")
    np.testing.assert_array_equal(scfm.train.load(tmp_path / "saved").predict(few)[columns], found[columns])
    with pytest.raises(
        ValueError, match="head of a BertForSequenceClassification, not of a GeneClassifier: .*CellClassifier.load"
    ):
        GeneClassifier.load(folder)
    with pytest.raises(
        ValueError, match=r"does not say which column .*: load it without data, and call predict\(adata\)"
    ):
        CellClassifier.load(folder, few)


def test_classes_of_genes(tables: Path, cells: AnnData, tmp_path: Path) -> None:
    peer = published(tables, tmp_path / "tuned", "BertForTokenClassification")
    folder, few = converted(tables, tmp_path), cells[:8].copy()
    model = scfm.train.load(folder)
    assert isinstance(model, GeneClassifier)
    found = model.predict(few)
    with scfm.model.load(folder).session(few) as opened:
        session: Any = opened
        token_of = dict(zip(session.source.var.index, session.genes.tokens.tolist(), strict=True))
    sums: dict[int, list[np.ndarray]] = {}
    for one in tokens_of(folder, few):
        with torch.no_grad():
            shares = peer(one).logits[0].softmax(dim=1).numpy()
        for token, share in zip(one[0].tolist(), shares, strict=True):
            sums.setdefault(token, []).append(share)
    columns = [f"probability_{label}" for label in LABELS.values()]
    seen = [gene for gene in few.var_names if token_of[gene] in sums]
    assert len(seen) > N_GENES // 2
    np.testing.assert_allclose(
        found.loc[seen, columns], [np.mean(sums[token_of[gene]], axis=0) for gene in seen], atol=1e-5
    )
    assert found.drop(index=seen)["label"].isna().all()


@pytest.mark.parametrize("pooled", [True, False])
def test_several_tasks(pooled: bool, tables: Path, cells: AnnData, tmp_path: Path) -> None:
    peer = published(tables, tmp_path / "tuned", "BertModel")
    generator = torch.Generator().manual_seed(2)
    heads = [(torch.randn(n, WIDTH, generator=generator), torch.randn(n, generator=generator)) for n in (3, 2)]
    attention = torch.randn(WIDTH, 1, generator=generator)
    tensors = {f"bert.{name}": tensor for name, tensor in peer.state_dict().items()}
    for number, (weight, bias) in enumerate(heads):
        tensors |= {f"classification_heads.{number}.weight": weight, f"classification_heads.{number}.bias": bias}
    if pooled:
        tensors["attention_pool.attention_weights"] = attention
    torch.save(tensors, tmp_path / "tuned" / "pytorch_model.bin")
    (tmp_path / "tuned" / "model.safetensors").unlink()
    folder, few = converted(tables, tmp_path), cells[:8].copy()
    expected = []
    for one in tokens_of(folder, few):
        with torch.no_grad():
            states = peer(one).last_hidden_state[0]
        read = (states * (states @ attention).softmax(dim=0)).sum(dim=0) if pooled else states[0]
        expected.append(np.concatenate([(weight @ read + bias).softmax(dim=0).numpy() for weight, bias in heads]))
    model = scfm.train.load(folder)
    assert isinstance(model, MultiTaskClassifier)
    found = model.predict(few)
    shares = found[[name for name in found if "_probability_" in str(name)]]
    assert shares.columns[0] == "classification_heads.0_probability_0"
    np.testing.assert_allclose(shares, expected, atol=1e-5)


def test_folders_without_a_head_that_is_known(tables: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no trained head"):
        scfm.train.load(scfm.model.convert(tables, tmp_path / "plain"))
    published(tables, tmp_path / "tuned", "BertForSequenceClassification")
    path = tmp_path / "tuned" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["BertForMultipleChoice"]}))
    with pytest.raises(
        ValueError, match="head of a BertForMultipleChoice, which no class here has; there are BertForSeq"
    ):
        scfm.train.load(converted(tables, tmp_path))
