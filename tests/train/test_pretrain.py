"""Pretraining: from files to a folder of a model, and what happens on the way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import sparse

import scfm
from scfm.genes import Vocabulary
from scfm.model.families.scfm_mini import ScfmMini

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("lightning")

GENES = [f"ENSG{i:011d}" for i in range(1, 61)]
SIZES = {"n_layers": 1, "hidden_size": 16, "n_heads": 2, "intermediate_size": 32, "max_positions": 40}


def write_cells(path: Path, n: int, genes: list[str], seed: int) -> Path:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(3, size=n)
    means = rng.gamma(0.5, 4.0, (3, len(genes)))
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(means[kinds]).astype(np.float32)))
    adata.var_names, adata.obs["cell_type"] = genes, [f"kind {kind}" for kind in kinds]
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files with other genes, and the vocabulary of a model."""
    folder = tmp_path_factory.mktemp("corpus")
    write_cells(folder / "one.h5ad", 80, GENES[:50], 0)
    write_cells(folder / "two.h5ad", 40, GENES[20:], 1)
    tokens = np.arange(2, 62, dtype=np.int32)
    vocabulary = Vocabulary(np.array(GENES), tokens, np.linspace(1, 2, 60), {"<pad>": 0, "<mask>": 1})
    (folder / "genes").mkdir()
    vocabulary.save(folder / "genes")
    ScfmMini.new_card("genes", {**SIZES, "hidden_act": "relu"}, vocabulary).write(folder / "genes")
    return folder


def config(corpus: Path, **changes: Any) -> dict[str, Any]:
    return {
        "files": [str(corpus / "*.h5ad")],
        "family": "scfm_mini",
        "steps": 6,
        "architecture": SIZES,
        "genes": {"source": str(corpus / "genes")},
        "sampling": {"batch_cells": 8},
        "validation": {"cells": 8, "every": 3},
        "checkpoint_every": 2,
        "objectives": {"masked_genes": {}, "contrastive": {"weight": 0.5}},
        "views": {"least_genes": 10, "least_expressed": 5},
        **changes,
    }


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    return scfm.train.pretrain(config=config(corpus), out=folder)  # type: ignore[return-value]


def test_the_result_is_a_model(corpus: Path, trained: Path) -> None:
    model = scfm.model.load(trained)
    card = model.card
    assert (card.id, card.family, card.pooling, card.max_tokens) == ("model", "scfm_mini", "mean", 40)
    assert model.embed(corpus / "one.h5ad").shape == (80, 16)
    assert [one["name"] for one in card.training["data"]] == ["one", "two"]
    assert [(one["cells"], one["genes"]) for one in card.training["data"]] == [(80, 50), (40, 40)]
    assert all(len(one["sha256"]) == 64 for one in card.training["data"])
    assert card.training["run"]["seed"] == 0
    curves = card.training["curves"]
    assert [step for step, _ in curves["validation/masked_genes"]] == [2, 5]
    assert {"train/loss", "learning_rate", "tokens_per_second", "validation/contrastive"} <= set(curves)
    kept = sorted(path.name for path in (trained.parent / "model.training" / "checkpoints").iterdir())
    assert len(kept) == 2
    assert kept[1] == "newest-step=6.ckpt"


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    corpus: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scfm.train.module import PretrainingModule

    step = PretrainingModule.training_step

    def interrupted(self: Any, batches: Any, number: int) -> None:
        if self.global_step == 5:
            msg = "killed"
            raise RuntimeError(msg)
        step(self, batches, number)

    run = config(corpus)
    monkeypatch.setattr(PretrainingModule, "training_step", interrupted)
    with pytest.raises(RuntimeError, match="killed"):
        scfm.train.pretrain(config=run, out=tmp_path / "model")
    monkeypatch.undo()
    assert not (tmp_path / "model").exists()
    scfm.train.pretrain(config=run, out=tmp_path / "model")
    expected, found = weights(trained), weights(tmp_path / "model")
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    curves = [
        json.loads((folder / "card.json").read_text())["training"]["curves"] for folder in (trained, tmp_path / "model")
    ]
    assert curves[0]["validation/loss"] == curves[1]["validation/loss"]


def test_another_run_does_not_go_on(corpus: Path, trained: Path) -> None:
    work = trained.parent / "model.training"
    other = trained.parent / "other"
    work.rename(other.with_name("other.training"))
    try:
        with pytest.raises(ValueError, match="belongs to another run, which differs in seed, steps"):
            scfm.train.pretrain(config=config(corpus), out=other, steps=7, seed=3)
    finally:
        other.with_name("other.training").rename(work)
