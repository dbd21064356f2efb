"""Fine-tuned checkpoints: their encoder is read as the transformers package reads it, their head is kept."""

from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import scfm
from scfm.model import registry
from scfm.model.registry import card_of
from scfm.testing import write_geneformer, write_sccello
from scfm.weights.tensors import sha256

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import Tensor

transformers = pytest.importorskip("transformers")
N_GENES, LABELS = 60, {0: "nf", 1: "hcm", 2: "dcm"}
LAYER = "bert.encoder.layer.1.attention.self"


def cells() -> AnnData:
    genes = [f"ENSG{i:011d}" for i in range(1, N_GENES + 1)]
    return scfm.datasets.synthetic(6, N_GENES, genes_per_cell=20, genes=genes)


def dictionaries(folder: Path, version: Any = 2) -> Path:
    """Gene tables, and the sizes of a model."""
    return write_geneformer(folder, version=version, n_genes=N_GENES, n_layers=2, max_tokens=32)


def fine_tuned(tables: Path, folder: Path, kind: str) -> Any:
    """Save a classifier with random weights as the transformers package does."""
    sizes = json.loads((tables / "config.json").read_text())
    config = transformers.BertConfig(**{name: value for name, value in sizes.items() if name != "architectures"})
    config.id2label, config.label2id = LABELS, {label: number for number, label in LABELS.items()}
    torch.manual_seed(1)
    model = getattr(transformers, kind)(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def hidden_states(model: Any, loaded: Any, adata: AnnData, layer: int) -> list[Tensor]:
    """What the transformers package computes for the tokens of each cell."""
    with loaded.session(adata) as session:
        block = session.encoder()(next(iter(session.source.blocks())))
    tokens = [block.tokens[a:b] for a, b in zip(block.offsets[:-1], block.offsets[1:], strict=True)]
    with torch.no_grad():
        outputs = [model(torch.from_numpy(one)[None].long(), output_hidden_states=True) for one in tokens]
    return [output.hidden_states[layer - 1][0] for output in outputs]


def first(states: list[Tensor]) -> NDArray[np.float32]:
    return torch.stack([state[0] for state in states]).numpy()


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForTokenClassification", "BertModel"])
@pytest.mark.parametrize("version", [1, 2])
def test_the_encoder_is_that_of_the_peer(
    kind: str, version: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tables = dictionaries(tmp_path / "tables", version)
    peer, adata = fine_tuned(tables, tmp_path / "tuned", kind), cells()
    folder = scfm.model.convert(tmp_path / "tuned", tmp_path / "converted", dictionaries=tables)
    with caplog.at_level(logging.INFO, "scfm"):
        loaded = [scfm.model.load(tmp_path / "tuned", dictionaries=tables), scfm.model.load(folder)]
    for model in loaded:
        for layer in (0, -1):
            states = hidden_states(peer, model, adata, layer)
            wanted = first(states) if version == 2 else torch.stack([one.mean(0) for one in states]).numpy()
            np.testing.assert_allclose(model.embed(adata, hidden_layer=layer), wanted, atol=2e-6)
    if kind == "BertModel":
        assert not loaded[1].card.head
        assert not (folder / "head.safetensors").exists()
        return
    assert f"tuned is fine-tuned; the head of {kind} (classifier: nf, hcm, dcm) is not used" in caplog.text
    assert (loaded[1].card.head, loaded[1].card.labels) == (kind, {"classifier": ["nf", "hcm", "dcm"]})
    kept, state = load_file(folder / "head.safetensors"), peer.state_dict()
    pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} & state.keys()
    assert kept.keys() == {"classifier.weight", "classifier.bias", *pooler}
    assert all(torch.equal(tensor, state[name]) for name, tensor in kept.items())
    assert kept.keys() | load_file(folder / "model.safetensors").keys() == state.keys()


def test_a_multi_task_model(tmp_path: Path) -> None:
    tables = dictionaries(tmp_path / "tables")
    peer, adata = fine_tuned(tables, tmp_path / "tuned", "BertModel"), cells()
    heads = {"classification_heads.0.weight": torch.ones(3, 16), "classification_heads.1.weight": torch.ones(2, 16)}
    more = {
        **heads,
        "classification_heads.0.bias": torch.ones(3),
        "attention_pool.attention_weights": torch.ones(16, 1),
    }
    tensors = {f"module.bert.{name}": tensor for name, tensor in peer.state_dict().items()}  # saved under DDP
    torch.save(
        tensors | {f"module.{name}": tensor for name, tensor in more.items()}, tmp_path / "tuned/pytorch_model.bin"
    )
    (tmp_path / "tuned/model.safetensors").unlink()
    folder = scfm.model.convert(tmp_path / "tuned", tmp_path / "converted", dictionaries=tables)
    model = scfm.model.load(folder)
    np.testing.assert_allclose(model.embed(adata), first(hidden_states(peer, model, adata, -1)), atol=2e-6)
    assert model.card.labels == {"classification_heads.0": ["0", "1", "2"], "classification_heads.1": ["0", "1"]}
    assert more.keys() < load_file(folder / "head.safetensors").keys()


def test_sccello_with_a_classifier_has_no_projection(tmp_path: Path) -> None:
    folder, adata = write_sccello(tmp_path / "cello", n_genes=N_GENES, n_layers=2, max_tokens=32), cells()
    expected = scfm.model.load(folder).embed(adata)
    tensors = {name: one for name, one in load_file(folder / "model.safetensors").items() if name.startswith("bert.")}
    save_file(
        tensors | {"classifier.weight": torch.ones(3, 16), "classifier.bias": torch.ones(3)},
        folder / "model.safetensors",
    )
    for model in (scfm.model.load(folder), scfm.model.load(scfm.model.convert(folder, tmp_path / "converted"))):
        np.testing.assert_array_equal(model.embed(adata), expected)
        with pytest.raises(
            ValueError, match="pooling='cell_cls' is not known to cello; use one of 'cls', 'mean', 'gene'"
        ):
            model.embed(adata, pooling="cell_cls")


def adapters(rank: int = 2) -> dict[str, Tensor]:
    """Adapters of query and value in the last layer, and the classifier that was trained with them."""
    generator = torch.Generator().manual_seed(3)
    sizes = {f"{LAYER}.{part}.lora_{side}.weight": size for part in ("query", "value") for side, size in
             (("A", (rank, 16)), ("B", (16, rank)))}  # fmt: skip
    sizes |= {"classifier.weight": (3, 16), "classifier.bias": (3,)}
    return {f"base_model.model.{name}": torch.randn(size, generator=generator) for name, size in sizes.items()}


def adapted(tmp_path: Path, **config: Any) -> tuple[Path, Path, Any]:
    """A folder of adapters as peft writes it, the folder of its model, and the peer with the products added."""
    tables = dictionaries(tmp_path / "tables")
    peer = fine_tuned(tables, tmp_path / "base", "BertForMaskedLM")
    for path in tables.glob("*.pkl"):
        path.replace(tmp_path / "base" / path.name)
    folder = tmp_path / "adapted"
    folder.mkdir()
    found = adapters()
    save_file(found, folder / "adapter_model.safetensors")
    given = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": str(tmp_path / "base")} | config
    (folder / "adapter_config.json").write_text(json.dumps(given))
    scale = 6 / 2**0.5 if config.get("use_rslora") else 3
    for part in ("query", "value"):
        up, down = (found[f"base_model.model.{LAYER}.{part}.lora_{side}.weight"] for side in "BA")
        peer.get_submodule(f"{LAYER}.{part}").weight.data += scale * up @ down
    return folder, tmp_path / "base", peer


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_adapters_are_merged(beside: bool, use_rslora: bool, tmp_path: Path) -> None:
    folder, base, peer = adapted(tmp_path, use_rslora=use_rslora)
    if beside:
        for path in base.iterdir():
            shutil.copy(path, folder)
    adata, plain = cells(), scfm.model.load(base)
    model = scfm.model.load(folder)
    values = model.embed(adata, hidden_layer=0)
    np.testing.assert_allclose(values, first(hidden_states(peer, model, adata, 0)), atol=2e-6)
    assert not np.allclose(values, plain.embed(adata, hidden_layer=0), atol=0.1)
    assert model.card.id == "adapted"
    assert model.card.weights_sha256 != plain.card.weights_sha256
    converted = scfm.model.convert(folder, tmp_path / "converted", name="mine")
    assert load_file(converted / "head.safetensors").keys() == {"classifier.weight", "classifier.bias"}
    assert scfm.model.load(converted).card.id == "mine"
    np.testing.assert_array_equal(scfm.model.load(converted).embed(adata, hidden_layer=0), values)


def test_a_known_model_gives_its_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, base, _ = adapted(tmp_path)
    known = card_of("geneformer-v2-104m").with_(source_sha256=sha256(base / "model.safetensors"))
    monkeypatch.setitem(registry.known_cards, known.id, known)
    plain, tuned = scfm.model.load(base).card, scfm.model.load(folder).card
    assert (plain.id, plain.paper, plain.license) == (known.id, known.paper, known.license)
    assert (tuned.id, tuned.paper, tuned.license) == ("adapted", known.paper, known.license)
    assert tuned.description == "fine-tuned from geneformer-v2-104m"
    assert tuned.source_sha256 is None


def test_adapters_in_the_state_dict(tmp_path: Path) -> None:
    folder, base, peer = adapted(tmp_path)
    tensors = {f"base_model.model.{name}": one for name, one in load_file(base / "model.safetensors").items()}
    for part in ("query", "value"):
        for kind in ("weight", "bias"):
            name = f"base_model.model.{LAYER}.{part}"
            tensors[f"{name}.base_layer.{kind}"] = tensors.pop(f"{name}.{kind}")
    for name, one in adapters().items():
        tensors[name.replace(".weight", ".default.weight") if "lora" in name else
                name.replace("classifier.", "classifier.modules_to_save.default.")] = one  # fmt: skip
    tensors["base_model.model.classifier.original_module.weight"] = torch.zeros(3, 16)
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(
        ValueError,
        match="contain adapters .LoRA., but the adapter_config.json with their scale .lora_alpha. is missing",
    ):
        scfm.model.load(base)
    shutil.copy(folder / "adapter_config.json", base)
    shutil.copy(folder / "adapter_model.safetensors", base)
    model, adata = scfm.model.load(base), cells()
    np.testing.assert_allclose(
        model.embed(adata, hidden_layer=0), first(hidden_states(peer, model, adata, 0)), atol=2e-6
    )


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another method": ({"peft_type": "IA3"}, ValueError, "says peft_type='IA3'.* adapters of peft_type 'LORA' .* are read"),
    "no strength": ({"lora_alpha": None}, ValueError, "lora_alpha=None"),
    "a strength without end": ({"lora_alpha": float("inf")}, ValueError, "lora_alpha=inf"),
    "a strength that is none": ({"lora_alpha": True}, ValueError, "lora_alpha=True"),
    "strength by layer": ({"alpha_pattern": {"query": 3}}, ValueError, "alpha_pattern="),
    "no model": ({"base_model_name_or_path": "ctheodoris/Geneformer"}, FileNotFoundError, "adapters of 'ctheodoris/Geneformer', which is not a folder on this machine: copy its config.json"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_adapters_that_cannot_be_merged(kind: str, tmp_path: Path) -> None:
    config, error, match = WRONG[kind]
    folder, _, _ = adapted(tmp_path, **config)
    with pytest.raises(error, match=match):
        scfm.model.load(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(f"base_model.model.{LAYER}.query.lora_B.weight"), "query has no lora_B"),
        (lambda t: t.update({f"base_model.model.{LAYER}.query.lora_B.weight": torch.ones(8, 2)}), "do not fit its weight"),
        (lambda t: t.update({f"base_model.model.{LAYER}.query.lora_{one}.weight": torch.ones(shape) for one, shape in (("A", (0, 16)), ("B", (16, 0)))}), "do not fit its weight"),
        (lambda t: t.update({f"base_model.model.{LAYER}.query.lora_magnitude_vector": torch.ones(16)}), "1 unexpected: .*lora_magn"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_fit(change: Any, match: str, tmp_path: Path) -> None:
    folder, _, _ = adapted(tmp_path)
    tensors = adapters()
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=match):
        scfm.model.load(folder)
