"""Pretraining: from files to a folder of a model, and what happens on the way."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

import scfm
from scfm._lock import hold

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., dict[str, Any]]

pytest.importorskip("lightning")


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def trained(config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    return scfm.train.pretrain(config=config(), out=folder)  # type: ignore[return-value]


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
    config: Make, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scfm.train.module import PretrainingModule

    step = PretrainingModule.training_step

    def interrupted(self: Any, batches: Any, number: int) -> None:
        if self.global_step == 5:
            msg = "killed"
            raise RuntimeError(msg)
        step(self, batches, number)

    run = config()
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


def test_another_run_does_not_go_on(config: Make, trained: Path) -> None:
    work = trained.parent / "model.training"
    other = trained.parent / "other"
    work.rename(other.with_name("other.training"))
    try:
        with pytest.raises(ValueError, match="belongs to another run, which differs in seed, steps"):
            scfm.train.pretrain(config=config(), out=other, steps=7, seed=3)
    finally:
        other.with_name("other.training").rename(work)


def test_checkpoints_hold_nothing_but_data(trained: Path) -> None:
    (path,) = (trained.parent / "model.training" / "checkpoints").glob("newest-*")
    assert torch.load(path, weights_only=True)["global_step"] == 6


@pytest.mark.parametrize("kind", ["code", "empty", "pipe"])
def test_checkpoints_of_others_are_not_believed(kind: str, config: Make, trained: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return victim.write_text, ("executed",)

    out = tmp_path / "model"
    shutil.copytree(trained.with_name("model.training"), tmp_path / "model.training")
    checkpoints = tmp_path / "model.training" / "checkpoints"
    (checkpoints / "newest-step=mine.ckpt").write_bytes(b"no checkpoint")
    planted = checkpoints / "newest-step=7.ckpt"
    if kind == "code":
        torch.save({"state_dict": Code()}, planted)
    elif kind == "empty":
        planted.touch()
    else:
        if not hasattr(os, "mkfifo"):
            pytest.skip("has no pipes")
        os.mkfifo(planted)
    with pytest.raises(
        ValueError, match=r"newest-step=7\.ckpt (was refused .*Remove it|is neither a file nor a folder)"
    ):
        scfm.train.pretrain(config=config(), out=out)
    assert not victim.exists()
    planted.unlink()
    scfm.train.pretrain(config=config(), out=out)
    assert weights(out).keys() == weights(trained).keys()


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files")
def test_a_full_disk_leaves_the_last_checkpoint_whole(
    config: Make, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    from scfm.train.module import PretrainingModule

    step = PretrainingModule.training_step
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self: Any, batches: Any, number: int) -> None:
        step(self, batches, number)
        if self.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    monkeypatch.setattr(PretrainingModule, "training_step", limited)
    try:
        with pytest.raises(OSError, match=r"best-step=3\.ckpt could not be written .* make room there"):
            scfm.train.pretrain(config=config(), out=tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    (path,) = (tmp_path / "model.training" / "checkpoints").glob("newest-*")
    assert torch.load(path, weights_only=True)["global_step"] == 2
    scfm.train.pretrain(config=config(), out=tmp_path / "model")
    np.testing.assert_equal(weights(tmp_path / "model"), weights(trained))


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"machine": {"recompute": True}}, 0.0),
        ({"sampling": {"batch_tokens": 150}}, 1e-5),
        ({"machine": {"precision": "bf16-mixed"}}, 0.02),
        ({"sampling": {"memory_gb": 1e-6}}, None),
    ],
    ids=["recompute", "parts", "bfloat16", "little memory"],
)
def test_other_ways_to_compute_the_same(
    config: Make, tmp_path: Path, changes: dict[str, Any], tolerance: float | None
) -> None:
    run = config(steps=2, objectives={"masked_genes": {}}, validation={"cells": 0})
    plain = weights(scfm.train.pretrain(config=run, out=tmp_path / "plain"))  # type: ignore[arg-type]
    run = config(steps=2, objectives={"masked_genes": {}}, validation={"cells": 0})
    for part, values in changes.items():
        run[part] = {**run[part], **values}
    other = weights(scfm.train.pretrain(config=run, out=tmp_path / "other"))  # type: ignore[arg-type]
    for name, values in plain.items():
        if tolerance is not None:
            np.testing.assert_allclose(other[name], values, atol=tolerance, rtol=0, err_msg=name)
        else:
            assert np.isfinite(other[name]).all()


def test_weights_in_half_precision(config: Make, tmp_path: Path) -> None:
    run = config(
        steps=1, weights_dtype="float16", validation={"cells": 0}, license="CC0-1.0", terms={"one": "CC-BY-4.0"}
    )
    folder = scfm.train.pretrain(config=run, out=tmp_path / "model")
    assert {values.dtype for values in weights(folder).values()} == {np.dtype(np.float16)}  # type: ignore[arg-type]
    card = scfm.model.load(folder).card  # type: ignore[arg-type]
    assert card.license == "CC0-1.0"
    assert [one["terms"] for one in card.training["data"]] == ["CC-BY-4.0", ""]


def test_a_dry_run_says_what_it_takes(config: Make, tmp_path: Path) -> None:
    found = scfm.train.pretrain(config=config(), out=tmp_path / "model", steps=1000, dry_run=True)
    assert isinstance(found, dict)
    assert (found["files"], found["cells"], found["genes"], found["steps"]) == (2, 120, 60, 1000)
    assert 200 < found["tokens_per_step"] <= 640
    assert found["tokens"] == pytest.approx(1000 * found["tokens_per_step"], rel=0.01)
    assert found["seconds"] > 0
    assert found["bytes"] > 1e7
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_before_the_work(
    config: Make, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileExistsError, match="model exists already"):
        scfm.train.pretrain(config=config(), out=trained)
    with pytest.raises(ValueError, match="files is missing"):
        scfm.train.pretrain(out=tmp_path / "model")
    with pytest.raises(ValueError, match="out is missing"):
        scfm.train.pretrain(config=config())
    (tmp_path / "busy.training").mkdir()
    with hold(tmp_path / "busy.training" / "lock"), pytest.raises(TimeoutError, match="Another process is training"):
        scfm.train.pretrain(config=config(), out=tmp_path / "busy")
    monkeypatch.setattr("scfm.train._pretrain.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r'needs the package lightning, tensorboard: pip install "scfm-tools\[train\]"'
    ):
        scfm.train.pretrain(config=config(), out=tmp_path / "model")
    assert not (tmp_path / "model.training").exists()


def test_a_call_that_failed_leaves_nothing_to_start_from(config: Make, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="labels_key='nothing'"):
        scfm.train.pretrain(config=config(genes={"min_cells": 1}, labels_key="nothing"), out=tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    folder = scfm.train.pretrain(config=config(genes={"min_cells": 30}), out=tmp_path / "model")
    assert len(scfm.model.load(folder).vocabulary.genes) < 60


def test_products_in_bfloat16(config: Make, tmp_path: Path) -> None:
    run = config(objectives={"masked_genes": {}, "contrastive": {}, "anchor": {}}, sampling={"batch_cells": 16})
    run["machine"]["precision"] = "bf16-mixed"
    sizes = {"n_layers": 1, "hidden_size": 16, "n_heads": 2, "intermediate_size": 32, "max_positions": 40}
    whole, half = (
        scfm.model.load(scfm.train.pretrain(config={**run, "architecture": sizes, **more}, out=tmp_path / name))
        for name, more in (("half", {}), ("whole", {"machine": {**run["machine"], "precision": "32-true"}}))
    )
    for name, values in whole.tensors.items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, half.tensors[name], rtol=0, atol=0.03)
    losses = [model.card.training["curves"]["train/loss"][-1][1] for model in (whole, half)]
    assert losses[0] != losses[1]


def test_a_table_of_gene_vectors_belongs_to_the_run(config: Make, tmp_path: Path) -> None:
    genes = [f"ENSG{i:011d}" for i in range(1, 61)]
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 16)), index=genes)
    bad = table.copy()
    bad.iloc[3, 2] = np.nan
    with pytest.raises(ValueError, match="gene_vectors must hold a finite vector for each gene"):
        scfm.train.pretrain(config=config(), gene_vectors=bad, out=tmp_path / "model")
    folder = scfm.train.pretrain(config=config(), gene_vectors=table, out=tmp_path / "model")
    assert scfm.model.load(folder).card.training["run"]["gene_vectors"].startswith("a table, sha256 ")
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="belongs to another run, which differs in gene_vectors"):
        scfm.train.pretrain(config=config(), out=folder)


def test_a_dry_run_counts_what_is_trained(config: Make, tmp_path: Path) -> None:
    plain, anchored, nothing = (
        scfm.train.pretrain(config=config(objectives=objectives, **more), out=tmp_path / "model", dry_run=True)
        for objectives, more in (
            ({"masked_genes": {}}, {}),
            ({"masked_genes": {}, "anchor": {}}, {}),
            ({"masked_genes": {}}, {"masking": {"rate": 0.0}}),
        )
    )
    assert plain["parameters"] == anchored["parameters"] == nothing["parameters"]


@pytest.mark.parametrize(
    ("genes", "words"),
    [({"medians": True}, "genes.source"), ({"append": True, "source": "genes"}, "leave one of them")],
)
def test_genes_that_do_not_go_together(
    genes: dict[str, Any], words: str, config: Make, corpus: Path, trained: Path, tmp_path: Path
) -> None:
    given = {name: str(corpus / value) if name == "source" else value for name, value in genes.items()}
    run = config(genes=given) | ({"base": str(trained), "architecture": {}} if "append" in genes else {})
    with pytest.raises(ValueError, match=words):
        scfm.train.pretrain(config=run, out=tmp_path / "model")
